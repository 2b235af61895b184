#pragma once

#include "engine/cuda/step_view.h"

namespace tandem {

// Kernels that work on rows by themselves. All enqueue and return at once; rows are bf16 unless it says float. Widths
// are multiples of 8, and rows begin at multiples of 16 bytes.

// out[row] = table[token of row], and turns[row][i] = cosine and sine of position * frequencies[i].
struct EmbedArguments {
  StepView step;
  const __nv_bfloat16* table = nullptr;  // [vocabulary][columns]
  const int32_t* samples = nullptr;      // Of the step before.
  const double* frequencies = nullptr;   // [half_dim]
  int half_dim = 0;
  float2* turns = nullptr;       // [rows][half_dim]
  __nv_bfloat16* out = nullptr;  // [rows][columns]
  int columns = 0;
};
cudaError_t LaunchEmbed(const EmbedArguments& arguments, cudaStream_t stream);

// out = in / rms(in) * weight.
cudaError_t LaunchRmsNorm(const __nv_bfloat16* in, const __nv_bfloat16* weight, float epsilon, int rows, int columns,
                          __nv_bfloat16* out, cudaStream_t stream);
// out[rows][columns] = silu(gate) * up, of rows [gate | up].
cudaError_t LaunchSiluMul(const __nv_bfloat16* gate_up, int rows, int columns, __nv_bfloat16* out, cudaStream_t stream);
// out[i] = in[rows[i]].
cudaError_t LaunchGatherRows(const __nv_bfloat16* in, const int32_t* rows, int num_rows, int columns,
                             __nv_bfloat16* out, cudaStream_t stream);
// Ops::RopeAndAppendKv.
cudaError_t LaunchRopeAndAppend(const StepView& step, const HeadShape& shape, const HeadRotation& rotation,
                                const LayerPages& pages, __nv_bfloat16* qkv, cudaStream_t stream);

}  // namespace tandem
