#!/usr/bin/env python3
"""The same measurements as engine_bench on llama.cpp, with its own batch calls: run both in one go.

    pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 in a venv; then
    VENV/bin/python tests/bench/llama_cpp_bench.py build/models/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import ctypes
import random
import statistics
import sys
import time

import llama_cpp as lc

THREADS = 2


def make_context(model, sequences):
    params = lc.llama_context_default_params()
    params.n_ctx = 8192
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = THREADS
    context = lc.llama_init_from_model(model, params)
    assert context
    return context


def decode(context, tokens, positions, sequences, wants_logits):
    batch = lc.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, logits) in enumerate(zip(tokens, positions, sequences, wants_logits)):
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = logits
    assert lc.llama_decode(context, batch) == 0
    lc.llama_batch_free(batch)


def best(context, vocabulary, row):
    logits = lc.llama_get_logits_ith(context, row)
    array = (ctypes.c_float * vocabulary).from_address(ctypes.addressof(logits.contents))
    import numpy
    return int(numpy.frombuffer(array, dtype=numpy.float32).argmax())


def main():
    lc.llama_backend_init()
    silent = lc.llama_log_callback(lambda *_: None)  # Kept: the library calls it to the end.
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    model = lc.llama_model_load_from_file(sys.argv[1].encode(), lc.llama_model_default_params())
    vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    source = random.Random(1)

    def prompt(count):
        return [100 + source.randrange(40000) for _ in range(count)]

    rates = []
    context = make_context(model, 1)
    for _ in range(8):
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        tokens = prompt(512)
        begin = time.perf_counter()
        decode(context, tokens, range(512), [0] * 512, [0] * 511 + [1])
        best(context, vocabulary, 511)
        rates.append(512 / (time.perf_counter() - begin))
    print(f"prefill 512: {statistics.median(rates[1:]):.0f} tokens/s")
    lc.llama_free(context)
    for count in (1, 8, 32):
        context = make_context(model, count)
        rates = []
        for _ in range(5):
            lc.llama_memory_clear(lc.llama_get_memory(context), True)
            for sequence in range(count):
                decode(context, prompt(8), range(8), [sequence] * 8, [0] * 7 + [1])
            current = [500] * count
            begin = time.perf_counter()
            for step in range(64):
                decode(context, current, [8 + step] * count, range(count), [1] * count)
                current = [best(context, vocabulary, row) for row in range(count)]
            rates.append(64 * count / (time.perf_counter() - begin))
        print(f"decode batch {count}: {statistics.median(rates[1:]):.0f} tokens/s")
        lc.llama_free(context)


main()
