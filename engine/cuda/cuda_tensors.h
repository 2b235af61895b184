#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/rank_memory.h"
#include "engine/cuda/skinny_linear.h"
#include "engine/cuda/step_view.h"
#include "engine/ops.h"

namespace tandem {

// What the ops of engine/cuda pass to each other; all in the device's memory.

using Bf16 = __nv_bfloat16;

class CudaActivation final : public Activation {
 public:
  CudaActivation(int64_t max_rows, int64_t columns, ActivationType type, DeviceMemory memory)
      : Activation(max_rows, columns), type_(type), memory_(std::move(memory)), data_(memory_.as<void>()) {}
  CudaActivation(int64_t max_rows, int64_t columns, ActivationType type, std::unique_ptr<RankMemory> shared)
      : Activation(max_rows, columns), type_(type), shared_(std::move(shared)), data_(shared_->own()) {}
  bool is_float() const { return type_ == ActivationType::kFloat; }
  template <typename T = Bf16>
  T* data() const {
    return static_cast<T*>(data_);
  }
  // Of every rank; of what NewSharedActivation made.
  const RankPointers& of_ranks() const { return shared_->pointers(); }

 private:
  const ActivationType type_;
  const DeviceMemory memory_;
  const std::unique_ptr<RankMemory> shared_;  // Instead.
  void* const data_;
};

class CudaLinear final : public LinearWeight {
 public:
  CudaLinear(int64_t out, int64_t in, std::shared_ptr<DeviceMemory> weight, DeviceMemory bias)
      : LinearWeight(out, in), weight_(std::move(weight)), bias_(std::move(bias)) {}
  // In FP8.
  CudaLinear(int64_t out, int64_t in, DeviceMemory codes, DeviceMemory scales, DeviceMemory bias)
      : LinearWeight(out, in),
        kind_(WeightKind::kFloat8),
        weight_(std::make_shared<DeviceMemory>(std::move(codes))),
        scales_(std::move(scales)),
        bias_(std::move(bias)) {}
  // `few_bits`: points to what the memories hold.
  CudaLinear(int64_t out, int64_t in, const FewBitWeight& few_bits, DeviceMemory codes, DeviceMemory scales,
             DeviceMemory factors, DeviceMemory bias)
      : LinearWeight(out, in),
        kind_(few_bits.kind),
        few_bits_(few_bits),
        weight_(std::make_shared<DeviceMemory>(std::move(codes))),
        scales_(std::move(scales)),
        factors_(std::move(factors)),
        bias_(std::move(bias)) {}
  // Null where it is something else; so with the others.
  const Bf16* weight() const { return kind_ == WeightKind::kBf16 ? weight_->as<const Bf16>() : nullptr; }
  Float8Weight float8() const {
    if (!is_float8()) return {};
    return {weight_->as<const uint8_t>(), scales_.as<const float>(), Float8ScaleStride(in())};
  }
  const FewBitWeight& few_bits() const { return few_bits_; }
  bool is_float8() const { return kind_ == WeightKind::kFloat8; }
  bool is_few_bits() const { return IsFewBits(kind_); }
  const Bf16* bias() const { return bias_.as<const Bf16>(); }  // Null: none.

 private:
  const WeightKind kind_ = WeightKind::kBf16;
  const FewBitWeight few_bits_;
  const std::shared_ptr<DeviceMemory> weight_;  // Shared by a tied embedding.
  const DeviceMemory scales_, factors_, bias_;
};

class CudaVector final : public VectorWeight {
 public:
  explicit CudaVector(DeviceMemory memory) : memory_(std::move(memory)) {}
  const Bf16* data() const { return memory_.as<const Bf16>(); }

 private:
  const DeviceMemory memory_;
};

class CudaEmbedding final : public EmbeddingTable {
 public:
  explicit CudaEmbedding(std::shared_ptr<DeviceMemory> table) : table_(std::move(table)) {}
  const Bf16* data() const { return table_->as<const Bf16>(); }

 private:
  const std::shared_ptr<DeviceMemory> table_;
};

inline const CudaActivation& Cuda(const Activation& activation) {
  return static_cast<const CudaActivation&>(activation);
}
inline CudaActivation& Cuda(Activation& activation) { return static_cast<CudaActivation&>(activation); }
inline const CudaLinear& Cuda(const LinearWeight& weight) { return static_cast<const CudaLinear&>(weight); }
inline const Bf16* Data(const VectorWeight& weight) { return static_cast<const CudaVector&>(weight).data(); }

// A point in the engine's stream.
class StreamEvent final : public SourceEvent {
 public:
  StreamEvent(int device, cudaStream_t stream) : device_(device) {
    CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
    CheckCuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  ~StreamEvent() override { cudaEventDestroy(event_); }
  absl::StatusOr<bool> PollReady() const override {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaSuccess || error == cudaErrorNotReady) return error == cudaSuccess;
    return absl::InternalError(absl::StrCat("GPU ", device_, ": ", cudaGetErrorString(error)));
  }

 private:
  const int device_;
  cudaEvent_t event_ = nullptr;
};

// A call of the kernel for few rows, without what is fused with it.
inline SkinnyLinearArguments SkinnyCall(const Activation& in, const LinearWeight& weight, int rows,
                                        const Activation& out) {
  SkinnyLinearArguments call;
  call.weight = Cuda(weight).weight();
  call.float8 = Cuda(weight).float8();
  call.few_bits = Cuda(weight).few_bits();
  call.bias = Cuda(weight).bias();
  call.in = Cuda(in).data();
  call.out = Cuda(out).data<void>();
  call.is_float = Cuda(out).is_float();
  call.rows = rows;
  call.out_features = static_cast<int>(weight.out());
  call.in_features = static_cast<int>(weight.in());
  return call;
}

inline LayerPages PagesOf(int layer, const KvPoolView& kv) {
  LayerPages pages;
  pages.base = kv.base + layer * kv.layout.layer_bytes();
  pages.page_bytes = kv.layout.page_bytes();
  pages.value_offset = kv.layout.own_heads() * kv.layout.head_bytes();
  pages.head_bytes = kv.layout.head_bytes();
  pages.page_tokens = kv.layout.page_tokens;
  pages.is_float8 = kv.layout.element_bytes == 1;
  return pages;
}

}  // namespace tandem
