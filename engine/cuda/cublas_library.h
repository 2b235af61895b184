#pragma once

#include <cublasLt.h>

#include "absl/status/statusor.h"

namespace tandem {

// The functions of cuBLASLt that are used here, found when they are first wanted. Linked in, the library would give
// each thread of a program 94 KB of thread-local memory, more than small stacks of other libraries' threads have room
// for; so programs also start where it is missing.
struct CublasLibrary {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetStatusName) status_name = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) find_algorithms = nullptr;
  decltype(&cublasLtMatmulDescCreate) operation_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) operation_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) operation_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
};

// UNAVAILABLE: the machine has no cuBLAS of CUDA 13, or not where libraries are looked for.
absl::StatusOr<const CublasLibrary*> LoadCublas();

}  // namespace tandem
