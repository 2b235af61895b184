#pragma once

#include <cuda_runtime_api.h>

#include "engine/cuda/skinny_linear.h"

namespace tandem {

// Whether a layer with a norm, which `call` does not name, is faster when the norm is a kernel of its own.
bool WantsNormBefore(const SkinnyLinearArguments& call, int compute_major);

// Enqueues a linear layer of few rows with the kernel that is fastest for it: streamed_linear, skinny_linear, or, for
// weights of few bits, skinny_linear several times. False: there is none, and nothing was enqueued.
bool RunFewRows(const SkinnyLinearArguments& call, int multiprocessors, int compute_major, cudaStream_t stream);

}  // namespace tandem
