#pragma once

#include <cuda_runtime_api.h>

namespace tandem {

// What a worker ends with when its GPU has failed: a context that has seen an illegal access serves nobody any more.
// The launcher starts it anew, and requests are retried by rule.
inline constexpr int kGpuFailedExitCode = 76;

// Ends the process with a message that names the call, unless it went well.
void CheckCuda(cudaError_t error, const char* call);
// Ends it whatever the call said.
[[noreturn]] void EndAfterGpuFailure(const char* call, const char* error);

}  // namespace tandem
