#include "engine/cuda/few_rows.h"

#include <algorithm>
#include <cstdint>

#include "engine/cuda/cuda_check.h"
#include "engine/cuda/streamed_linear.h"

namespace tandem {
namespace {

// Weights of few bits are read again for each kMaxFewBitRows, while that takes less than to widen them.
constexpr int kMostPasses = 2;

bool RunInPasses(SkinnyLinearArguments call, int multiprocessors, cudaStream_t stream) {
  const int rows = call.rows;
  call.rows = kMaxFewBitRows;
  if (rows > kMostPasses * kMaxFewBitRows || !IsSkinny(call)) return false;
  const int64_t out_row_bytes =
      int64_t{call.is_gated ? call.out_features / 2 : call.out_features} * (call.is_float ? sizeof(float) : 2);
  for (int done = 0; done < rows; done += kMaxFewBitRows) {
    call.rows = std::min(kMaxFewBitRows, rows - done);
    CheckCuda(LaunchSkinnyLinear(call, multiprocessors, stream), "LaunchSkinnyLinear");
    call.in += int64_t{kMaxFewBitRows} * call.in_features;
    call.out = static_cast<uint8_t*>(call.out) + kMaxFewBitRows * out_row_bytes;
  }
  return true;
}

}  // namespace

bool WantsNormBefore(const SkinnyLinearArguments& call, int compute_major) {
  return IsStreamed(call, compute_major) || (IsFewBits(call.few_bits.kind) && call.rows > kMaxSkinnyRows);
}

bool RunFewRows(const SkinnyLinearArguments& call, int multiprocessors, int compute_major, cudaStream_t stream) {
  if (IsStreamed(call, compute_major)) {
    CheckCuda(LaunchStreamedLinear(call, multiprocessors, stream), "LaunchStreamedLinear");
  } else if (IsSkinny(call)) {
    CheckCuda(LaunchSkinnyLinear(call, multiprocessors, stream), "LaunchSkinnyLinear");
  } else {
    return IsFewBits(call.few_bits.kind) && RunInPasses(call, multiprocessors, stream);
  }
  return true;
}

}  // namespace tandem
