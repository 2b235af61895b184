#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// FP8 as DeepSeek stores and computes with it: E4M3 codes; weights have a factor for each block of kFloat8Block x
// kFloat8Block, activations one for each row's kFloat8Block columns.

constexpr int kFloat8Block = 128;

// A matrix [out][in] of codes; both sizes are multiples of the block.
struct Float8Weight {
  const uint8_t* codes = nullptr;  // Null: there is no such matrix.
  const float* scales = nullptr;   // [out / block][stride]
  int scale_stride = 0;            // in / block, up to a multiple of 4: so cuBLAS wants it.
};
inline int Float8ScaleStride(int64_t in_features) { return static_cast<int>((in_features / kFloat8Block + 3) / 4 * 4); }

// codes[row][i] = in[row][i] / scale, where scales[i / block][row] = the largest magnitude of the block / 448, at least
// 1e-4 / 448. Rows from `rows` to `padded_rows` become zeros. Columns are a multiple of the block.
cudaError_t LaunchQuantiseRows(const __nv_bfloat16* in, int rows, int padded_rows, int columns, uint8_t* codes,
                               float* scales, cudaStream_t stream);

// The runs of `run_bytes` codes that begin at base + pages[i] * page_bytes, as bf16, one behind the other. Sizes and
// places are multiples of 16.
cudaError_t LaunchWidenPages(const uint8_t* base, int64_t page_bytes, int64_t run_bytes, const int32_t* pages,
                             int num_pages, __nv_bfloat16* out, cudaStream_t stream);

}  // namespace tandem
