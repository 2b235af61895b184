#include "engine/cuda/few_rows.h"

#include <algorithm>
#include <cstdint>

#include "engine/cuda/cuda_check.h"
#include "engine/cuda/streamed_linear.h"

namespace tandem {
namespace {

// Weights of few bits are read again for each kMaxSkinnyRows, while that takes less than to widen them.
constexpr int kMostPasses = 3;

bool RunInPasses(SkinnyLinearArguments call, int multiprocessors, cudaStream_t stream) {
  const int rows = call.rows;
  call.rows = kMaxSkinnyRows;
  if (rows > kMostPasses * kMaxSkinnyRows || !IsSkinny(call)) return false;
  const int64_t out_row_bytes =
      int64_t{call.is_gated ? call.out_features / 2 : call.out_features} * (call.is_float ? sizeof(float) : 2);
  for (int done = 0; done < rows; done += kMaxSkinnyRows) {
    call.rows = std::min(kMaxSkinnyRows, rows - done);
    CheckCuda(LaunchSkinnyLinear(call, multiprocessors, stream), "LaunchSkinnyLinear");
    call.in += int64_t{kMaxSkinnyRows} * call.in_features;
    call.out = static_cast<uint8_t*>(call.out) + kMaxSkinnyRows * out_row_bytes;
  }
  return true;
}

}  // namespace

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
