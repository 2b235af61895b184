#pragma once

#include <memory>

#include "absl/status/status.h"
#include "common/topology.h"
#include "engine/ops.h"
#include "engine/rank_group.h"
#include "model/checkpoint.h"

namespace tandem {

// The ops on the CPU: AVX-512 VNNI (or, on demand, AMX tiles) where the processor has it, portable vectors
// elsewhere; f32 activations, int8 ones for quantised weights under Precision::kQuantised. `ranks`, which outlives
// them, moves what ranks give each other; null where there is one.
std::unique_ptr<Ops> NewCpuOps(int num_threads, Precision precision, RankGroup* ranks = nullptr);

// Bytes that a rank's share of a model's weights takes once they are prepared.
int64_t CpuWeightBytes(const Checkpoint& checkpoint, Precision precision, int ranks);

// INVALID_ARGUMENT when the environment asks for kernels that this processor does not run.
absl::Status CheckCpuSettings();

// Name of the kernels that NewCpuOps uses here: "amx", "avx512" or "portable".
const char* CpuKernelsName();

}  // namespace tandem
