#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/kv_layout.h"
#include "engine/cpu/packed_matrix.h"

namespace tandem {

// One block of query rows of one sequence against one KV head of the pool, for one thread.
struct AttentionTask {
  const float* q = nullptr;  // First row, first head of the group: [num_rows][q_stride], heads adjacent.
  int64_t q_stride = 0;
  float* out = nullptr;  // As q.
  int64_t out_stride = 0;
  int num_rows = 0;
  int first_position = 0;  // Of the first row; row r sees tokens [0, first_position + r].
  int group_heads = 0;     // Query heads that share the KV head.
  KvPoolView kv;
  int layer = 0;
  int kv_head = 0;
  const PageIndex* pages = nullptr;
};

// Some rows of activations times one panel of weights: out[r][panel * 16 ...] (+)= in[r] . W. Rows
// of `out` are `out_stride` floats apart; only `num_outputs` of the panel's 16 columns exist.
struct PanelOutput {
  float* out = nullptr;  // Row 0, first column of the panel.
  int64_t out_stride = 0;
  int num_outputs = kPanelRows;
  bool add = false;
};

// The inner loops of the CPU backend, in one build per instruction set. Results of a row never
// depend on which other rows are computed with it.
struct Kernels {
  const char* name;
  // `second_plane` may be null: then there is one plane.
  void (*quantise_row)(const float* in, int64_t columns, int group_columns, int8_t* values, int8_t* second_plane,
                       float* scales, float* sums);
  void (*quantised_panel)(const PackedMatrix& weight, int64_t panel, const QuantisedRows& in, int64_t first_row,
                          int64_t num_rows, const PanelOutput& out);
  void (*float_panel)(const PackedMatrix& weight, int64_t panel, const float* in, int64_t in_stride, int64_t num_rows,
                      const PanelOutput& out);
  // `scratch` has at least AttentionScratchFloats(task) floats, 64-byte aligned.
  void (*attention)(const AttentionTask& task, float* scratch);
  void (*rms_norm)(const float* in, const float* weight, float epsilon, int64_t columns, float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t columns, float* out);
  void (*store_kv)(const float* in, int64_t count, int element_bytes, uint8_t* out);
};

int64_t AttentionScratchFloats(const AttentionTask& task);

namespace portable {
const Kernels& GetKernels();
}
namespace avx512 {
const Kernels& GetKernels();
}
namespace amx {
const Kernels& GetKernels();
}

// The best build that this processor runs. TANDEM_CPU_KERNELS=NAME in the environment, one of portable, avx512 and amx,
// asks for another one.
const Kernels& ChooseKernels();
// INVALID_ARGUMENT when TANDEM_CPU_KERNELS names none that this processor runs.
absl::Status CheckKernelChoice();
// All builds that this processor runs, fastest first. The first call asks the kernel for the tile registers' state.
const std::vector<const Kernels*>& AvailableKernels();

}  // namespace tandem
