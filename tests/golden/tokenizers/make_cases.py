#!/usr/bin/env python3
"""Trains small tokenizers of every kind that Tandem reads and records what the real libraries make of texts, for
model/tokenizer_cases_test.cc.

    make_cases.py               writes NAME.json (as `tokenizers` saves it) or NAME.pieces.json (from `sentencepiece`), and cases.json
    make_cases.py --check       exit code 1 unless cases.json holds what the libraries make of the texts today

The corpus and the texts are our own. The split patterns are those that the published tokenizers of each family use.
"""

import io
import json
import pathlib
import sys

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent

CORPUS = [
    "The harbour lights were lit at six, and the keeper's boat wasn't back. They'll wait; we've waited before.",
    "In 2024 the town had 12345 people, 67 boats and 8 bakers. I'm told it'd grown by 3.5% since 1999.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\nfor i in range(10):\n\tprint(area(i))\r\n",
    "Über den Dächern läuft die Straße weiter, naïve Gäste trinken Café crème.",
    "東京の港で船を待つ。明日は雨が降るでしょう。ひらがなとカタカナ。",
    "Привет, мир! Сегодня в порту тихо. مرحبا بالعالم، كيف الحال؟ नमस्ते दुनिया।",
    "{\"name\": \"lamp\", \"values\": [1, 22, 333], \"on\": true}  <!-- a note -->  a && b || !c",
    "the the the and and harbour harbour lights lights return return range range   spaces    between",
] * 3

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Hello",
    " Hello",
    "  Hello  world  ",
    "The keeper's boat wasn't back; we'LL wait, I'M sure THEY'VE gone.",
    "can't' 's 'S x's",
    "In 2024, 12345678 people; 1,234.5 and 007 and ١٢٣٤ and ½ and ²³",
    "a1b22c333d4444",
    "def f(x):\n    return x**2\n\n\n\tpass\r\n\r\n  end\n ",
    "tabs\t\tand\u00a0no-break\u2003em\u3000wide\u0085next\u200bzero",
    "Über Straße naïve café",
    "cafe\u0301 A\u030a \u1112\u1161\u11ab \ufb01",
    "東京の港で2024年に船を待つ。カタカナ!",
    "日本語English混ぜるtext123",
    "Привет мир مرحبا بالعالم नमस्ते ไทย 한국어",
    "🙂🙃 👩‍👩‍👧 🇫🇷 ☃ ∑∫ €5 £6 ©",
    "!!! ??? ... --- ==> #include <x> @user $var %d ^& *() _under_ [a](b) {c} |d| ~e `f` \\g",
    "_hello -hello .hello /path/to/file.txt C:\\dir",
    "  leading\n  lines\n\n\n\n  here  \n",
    "<s>in the text</s> and <|user|> Hi <|user|>there  <pad>  x",
    "<|user|>",
    "x <strip> y<strip>z  <strip>",
    "\u2581already\u2581marked \u2581\u2581",
    "harbour lights " * 12,
    "a" * 100,
    "\x00\x01control\x7f",
]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
SPECIALS = ["<s>", "</s>", "<|user|>"]


def byte_level(pieces, normalizer=None, ignore_merges=False, begin=False):
    """pieces: pre-tokenizers ahead of the byte alphabet."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces) if len(pieces) > 1 else pieces[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=700, show_progress=False, special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B",
                                                                 special_tokens=[("<s>", 0)])
    tokenizer.add_tokens([AddedToken("<strip>", lstrip=True, rstrip=True, normalized=False)])
    return tokenizer


def splits(*patterns):
    return [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns] + [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def piece_level(normalizer=None, pre_tokenizer=None):
    """SentencePiece's BPE as a tokenizer.json writes it: U+2581 for spaces, bytes for what is in no token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    specials = ["<unk>"] + SPECIALS + [f"<0x{i:02X}>" for i in range(256)]
    # Lines are short words here, or training without pre-tokenizer would make tokens of whole sentences.
    tokenizer.train_from_iterator([" ".join(line.split()[i:i + 2]) for line in CORPUS for i in range(len(line.split()))],
                                  trainers.BpeTrainer(vocab_size=900, show_progress=False, special_tokens=specials,
                                                      limit_alphabet=90))
    # The bytes are ordinary vocabulary, no added tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return tokenizer


TOKENIZERS = {
    "gpt2": lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
    "gpt2_prefix_space": lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)]),
    "smollm": lambda: byte_level([pre_tokenizers.Digits(individual_digits=True),
                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
    "digit_runs": lambda: byte_level([pre_tokenizers.Digits(individual_digits=False),
                                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
    "llama3": lambda: byte_level(splits(LLAMA3), ignore_merges=True, begin=True),
    "qwen2": lambda: byte_level(splits(QWEN2), normalizer=normalizers.NFC()),
    "deepseek_v3": lambda: byte_level(splits(*DEEPSEEK3), begin=True),
    "llama2": lambda: piece_level(normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])),
    "metaspace_first": lambda: piece_level(None, pre_tokenizers.Metaspace("\u2581", "first", split=False)),
    "metaspace_always": lambda: piece_level(None, pre_tokenizers.Metaspace("\u2581", "always", split=True)),
    "metaspace_never": lambda: piece_level(None, pre_tokenizers.Metaspace("\u2581", "never", split=True)),
}


def train_sentencepiece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.replace("\n", " ") for line in CORPUS]), model_writer=model, model_type="bpe",
        vocab_size=700, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, character_coverage=0.98, minloglevel=2, num_threads=1)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pieces_of(processor):
    def kind(i):
        if processor.is_unknown(i):
            return "unknown"
        if processor.is_control(i):
            return "control"
        return "byte" if processor.is_byte(i) else "normal"

    return [[processor.id_to_piece(i), kind(i), processor.get_score(i)] for i in range(processor.get_piece_size())]


def cases_of(encode):
    return [{"text": text, "ids": encode(text)} for text in TEXTS]


def library_cases(name):
    tokenizer = Tokenizer.from_file(str(HERE / f"{name}.json"))
    return cases_of(lambda text: tokenizer.encode(text).ids)


def write_cases(cases):
    lines = [f" {json.dumps(name)}: [\n" + ",\n".join("  " + json.dumps(c, ensure_ascii=True) for c in of) + "\n ]"
             for name, of in cases.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main():
    path = HERE / "cases.json"
    if sys.argv[1:] == ["--check"]:
        stored = json.loads(path.read_text())
        wrong = [name for name in TOKENIZERS if stored[name] != library_cases(name)]
        # A trained SentencePiece model is not stored, and training may differ between versions: its pieces are the check.
        print("wrong: " + ", ".join(wrong) if wrong else f"{len(stored)} tokenizers' cases are current")
        sys.exit(1 if wrong else 0)
    cases = {}
    for name, make in TOKENIZERS.items():
        text = make().to_str(pretty=False)
        (HERE / f"{name}.json").write_text(json.dumps(json.loads(text), ensure_ascii=True, separators=(",", ":")) + "\n")
        cases[name] = library_cases(name)
    processor = train_sentencepiece()
    (HERE / "sentencepiece.pieces.json").write_text(json.dumps(pieces_of(processor), separators=(",", ":")) + "\n")
    cases["sentencepiece"] = cases_of(processor.encode)
    path.write_text(write_cases(cases))


if __name__ == "__main__":
    main()
