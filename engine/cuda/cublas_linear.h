#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cublas_library.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/float8_kernels.h"

namespace tandem {

// One product of a linear layer: out = in weight^T (+ bias) (+ out).
struct LinearCall {
  const __nv_bfloat16* in = nullptr;      // [rows][in_features]
  const __nv_bfloat16* weight = nullptr;  // [out_features][in_features]
  // In place of these two, as LaunchQuantiseRows makes the rows.
  Float8Weight float8;
  const uint8_t* codes = nullptr;       // [rows][in_features]
  const float* scales = nullptr;        // [in_features / kFloat8Block][rows]
  const __nv_bfloat16* bias = nullptr;  // [out_features], or null.
  void* out = nullptr;                  // [rows][out_features], bf16 or, with is_float, f32.
  bool is_float = false;
  bool add = false;
  int64_t rows = 0, out_features = 0, in_features = 0;
};

// Linear layers of many rows, by cuBLASLt. The algorithm for a shape is looked for once, by its heuristics.
//
// Thread-safety: not thread-safe. Ownership: owns the library's handle and the workspace; the stream outlives it.
class CublasLinear {
 public:
  // UNAVAILABLE: there is no cuBLAS here. RESOURCE_EXHAUSTED: the device's memory is full.
  static absl::StatusOr<std::unique_ptr<CublasLinear>> Create(cudaStream_t stream);
  ~CublasLinear();
  void Run(const LinearCall& call);

 private:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weight = nullptr, in = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm;
  };
  using Shape = std::tuple<int64_t, int64_t, int64_t, bool, bool, bool, bool>;
  CublasLinear(const CublasLibrary& library, cudaStream_t stream) : library_(library), stream_(stream) {}
  Plan MakePlan(const LinearCall& call);
  // Ends the process unless the call went well.
  void Check(cublasStatus_t status, const char* call) const;

  const CublasLibrary& library_;
  const cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
  absl::flat_hash_map<Shape, Plan> plans_;
};

}  // namespace tandem
