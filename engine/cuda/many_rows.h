#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda/cublas_linear.h"
#include "engine/cuda/cuda_tensors.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/paired_linear.h"

namespace tandem {

// Linear layers of more rows than RunFewRows takes: weights of FP8 by rows that are quantised first, those of few bits
// after they were widened to bf16, all by cuBLAS; on Hopper, up to 128 rows of bf16 by paired_linear, and a gate of
// many by gated_linear.
//
// Thread-safety: not thread-safe. Ownership: owns its workspaces; the stream outlives it.
class ManyRows {
 public:
  struct Options {
    int max_rows = 0;
    int multiprocessors = 0, compute_major = 0;
  };
  // As CublasLinear::Create.
  static absl::StatusOr<std::unique_ptr<ManyRows>> Create(const Options& options, cudaStream_t stream);

  // Makes room for layers of FP8 with up to `float8_columns` input features, and for such of few bits with up to
  // `few_bit_elements` weights. RESOURCE_EXHAUSTED: the device's memory is full.
  absl::Status Reserve(int64_t float8_columns, int64_t few_bit_elements);
  // Whether room was made for any.
  bool has_codes() const { return float8_columns_ > 0 || few_bit_elements_ > 0; }

  // While `step` runs, which must not be recorded, cuBLAS's algorithms are tried; the fastest are taken from then on.
  void TryAlgorithms(absl::FunctionRef<void()> step);

  // Ops::Linear.
  void Linear(const CudaActivation& in, const CudaLinear& weight, int rows, bool add, CudaActivation& out);
  // out = silu(gate) * up of the layer with rows [gate | up]. False: there is no kernel, and nothing was enqueued.
  bool GatedLinear(const CudaActivation& in, const CudaLinear& weight, int rows, CudaActivation& out);

  // Products of more rows are computed for a multiple of so many, so that there are few shapes to look algorithms up
  // for; activations have room for them.
  static int64_t RoundedRows(int64_t rows);

 private:
  ManyRows(const Options& options, cudaStream_t stream) : options_(options), stream_(stream) {}
  // False: paired_linear does not take it, and nothing was enqueued.
  bool RunPaired(const CudaActivation& in, const CudaLinear& weight, int rows, bool add, bool is_gated,
                 CudaActivation& out);
  PairedExchange exchange() { return {partial_.as<float>(), arrived_.as<uint32_t>()}; }

  const Options options_;
  const cudaStream_t stream_;
  std::unique_ptr<CublasLinear> cublas_;
  int64_t float8_columns_ = 0, few_bit_elements_ = 0;
  DeviceMemory codes_, scales_;     // The input of an FP8 layer.
  DeviceMemory widened_;            // The weights of a layer of few bits.
  DeviceMemory partial_, arrived_;  // Of paired_linear.
};

}  // namespace tandem
