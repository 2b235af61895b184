#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

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

// Linear layers of many rows, by cuBLASLt. The algorithms for a shape are looked for once, by its heuristics; the first
// of them is taken, or the fastest where they were tried.
//
// Thread-safety: not thread-safe. Ownership: owns the library's handle, the workspace and events; the stream outlives
// it.
class CublasLinear {
 public:
  // UNAVAILABLE: there is no cuBLAS here. RESOURCE_EXHAUSTED: the device's memory is full.
  static absl::StatusOr<std::unique_ptr<CublasLinear>> Create(cudaStream_t stream);
  ~CublasLinear();
  void Run(const LinearCall& call);
  // From now on calls try the algorithms of their shape, and wait for them: all of them where the weights are larger
  // than the cache, else the next one. What is added to is added to several times. Not in a stream that is recorded.
  void StartTrying() { is_trying_ = true; }
  // Each shape that was tried keeps its fastest.
  void EndTrying();

 private:
  struct Candidate {
    cublasLtMatmulAlgo_t algorithm;
    float milliseconds = std::numeric_limits<float>::infinity();  // The least so far.
  };
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weight = nullptr, in = nullptr, out = nullptr;
    std::vector<Candidate> candidates;
    size_t chosen = 0;  // Of them.
    size_t tries = 0;
  };
  using Shape = std::tuple<int64_t, int64_t, int64_t, bool, bool, bool, bool>;
  CublasLinear(const CublasLibrary& library, cudaStream_t stream) : library_(library), stream_(stream) {}
  Plan MakePlan(const LinearCall& call);
  cublasStatus_t Multiply(const LinearCall& call, const Plan& plan);
  void Try(const LinearCall& call, Plan& plan);
  // Ends the process unless the call went well.
  void Check(cublasStatus_t status, const char* call) const;

  const CublasLibrary& library_;
  const cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  bool is_trying_ = false;
  absl::flat_hash_map<Shape, Plan> plans_;
};

}  // namespace tandem
