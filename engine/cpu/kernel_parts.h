#pragma once

// The kernels of one build, by file; kernel_table.cc puts them into a Kernels table.

#include "engine/cpu/kernels.h"

namespace tandem {
namespace TANDEM_KERNEL_VARIANT {

void QuantiseRow(const float* in, int64_t columns, int group_columns, int8_t* values, int8_t* second_plane,
                 float* scales, float* sums);
void QuantisedPanel(const PackedMatrix& weight, int64_t panel, const QuantisedRows& in, int64_t first_row,
                    int64_t num_rows, const PanelOutput& out);
void FloatPanel(const PackedMatrix& weight, int64_t panel, const float* in, int64_t in_stride, int64_t num_rows,
                const PanelOutput& out);
void Attention(const AttentionTask& task, float* scratch);
void RmsNorm(const float* in, const float* weight, float epsilon, int64_t columns, float* out);
void SiluMul(const float* gate, const float* up, int64_t columns, float* out);
void StoreKv(const float* in, int64_t count, int element_bytes, uint8_t* out);

}  // namespace TANDEM_KERNEL_VARIANT
}  // namespace tandem
