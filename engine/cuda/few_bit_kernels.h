#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// What weights are in the device's memory, while activations are bf16.
enum class WeightKind {
  kBf16,
  kFloat8,  // Float8Weight.
  // FewBitWeight:
  kInt8,
  kInt4,
  kFloat4  // E2M1: NVFP4.
};

// Features that a quad of threads of skinny_linear takes of a row with a load of 16 bytes each.
constexpr int StepFeatures(WeightKind kind) {
  return kind == WeightKind::kBf16 ? 32 : kind == WeightKind::kFloat8 || kind == WeightKind::kInt8 ? 64 : 128;
}
constexpr bool IsFewBits(WeightKind kind) { return kind >= WeightKind::kInt8; }
// The same for code of devices.
template <WeightKind kKind>
inline constexpr int kStepFeatures = StepFeatures(kKind);
template <WeightKind kKind>
inline constexpr bool kIsFewBits = IsFewBits(kKind);

// A matrix [out][in]: code * scale * factor, where in is a multiple of StepFeatures. A row is a sequence of steps of 64
// bytes, 16 for each thread of a quad: thread q has the features 16 m + 4 q + i of the step, i = 0..3; a product of
// skinny_linear is of the 16 features of one m, 4 of each thread. Bytes of kInt8 lie in the order of m,
// then i. Of 4 bits, the code of m and i is nibble 2 (m % 2) + i / 2 + 4 (i % 2) of the 32-bit word m / 2, so that two
// neighbours in bf16 are cut out of a word at once; kInt4's are 8 more than their value.
struct FewBitWeight {
  WeightKind kind = WeightKind::kBf16;  // There is no such matrix.
  const uint8_t* codes = nullptr;
  // Of 4 bits: [out][scale_columns], for 2^group_bits features each (kFloat4: 16; 31 bits: for a whole row). kFloat4's
  // are 2^117 times as large, so that codes become bf16 by moving bits; its factors make up for 2^9 of it.
  const __nv_bfloat16* scales = nullptr;
  int scale_columns = 0, group_bits = 0;
  const float* factors = nullptr;  // [out]
};

// out [out_features][in_features] = the matrix in bf16.
cudaError_t LaunchWidenWeight(const FewBitWeight& weight, int64_t out_features, int64_t in_features, __nv_bfloat16* out,
                              cudaStream_t stream);

}  // namespace tandem
