#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "engine/cpu/cpu_ops.h"
#include "engine/cuda/cuda_ops.h"
#include "engine/engine.h"

// How an engine is made: its sizes, and the ops of its device.

namespace tandem {
namespace {

absl::StatusOr<int64_t> LeastOfRanks(RankGroup& ranks, int64_t own) {
  ASSIGN_OR_RETURN(const std::vector<std::string> all, ranks.Exchange(absl::StrCat(own)));
  int64_t least = own;
  for (const std::string& each : all) {
    int64_t value = 0;
    if (!absl::SimpleAtoi(each, &value)) return absl::InternalError("a rank says no number");
    least = std::min(least, value);
  }
  return least;
}

}  // namespace

absl::Status Engine::SizePool(const Checkpoint& checkpoint, const Options& options, int64_t bytes, Needs& needs) {
  KvLayout& layout = needs.layout;
  const int64_t num_pages = bytes / layout.page_bytes();
  if (num_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat("KV memory of ", FormatBytes(std::max<int64_t>(0, bytes)),
                                                   " holds no page; one of ", options.page_tokens, " tokens takes ",
                                                   FormatBytes(layout.page_bytes()), "; raise kv_memory"));
  }
  layout.num_pages = static_cast<int>(std::min<int64_t>(num_pages, 1 << 30));
  needs.max_context_tokens = static_cast<int>(
      std::min<int64_t>(checkpoint.config().max_context_tokens, int64_t{layout.num_pages} * layout.page_tokens));
  return absl::OkStatus();
}

absl::StatusOr<Engine::Needs> Engine::Plan(const Checkpoint& checkpoint, const Options& options) {
  Needs needs{.layout = KvShape(checkpoint.config()), .max_context_tokens = checkpoint.config().max_context_tokens};
  const int ranks = options.shard.size;
  RETURN_IF_ERROR(CheckShards(checkpoint, ranks));
  needs.layout.tp_rank = options.shard.rank;
  needs.layout.tp_size = ranks;
  needs.layout.page_tokens = options.page_tokens;
  needs.layout.element_bytes = options.float8_kv ? 1 : options.precision == Precision::kFull ? 4 : 2;
  if (options.gpu.has_value()) {
    RETURN_IF_ERROR(CheckCudaModel(checkpoint.config(), ranks));
    needs.weight_bytes = CudaWeightBytes(checkpoint, ranks);
    if (options.kv_memory_bytes == 0) return needs;
  } else {
    RETURN_IF_ERROR(CheckCpuSettings());
    needs.weight_bytes = CpuWeightBytes(checkpoint, options.precision, ranks);
  }
  RETURN_IF_ERROR(SizePool(checkpoint, options, options.kv_memory_bytes, needs));
  return needs;
}

absl::StatusOr<std::unique_ptr<Ops>> Engine::MakeOps(const Checkpoint& checkpoint, const Options& options,
                                                     const Needs& needs) {
  if (!options.gpu.has_value()) return NewCpuOps(options.threads, options.precision, options.ranks);
  ASSIGN_OR_RETURN(const int64_t free, FreeDeviceBytes(*options.gpu));
  if (const int64_t wanted = needs.weight_bytes + options.kv_memory_bytes; wanted > free) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "GPU ", *options.gpu, " has ", FormatBytes(free), " free; the weights take ", FormatBytes(needs.weight_bytes),
        options.kv_memory_bytes > 0 ? absl::StrCat(" and kv_memory ", FormatBytes(options.kv_memory_bytes)) : ""));
  }
  const int64_t pages_of_sequence = (needs.max_context_tokens + options.page_tokens - 1) / options.page_tokens;
  return NewCudaOps({.device = *options.gpu,
                     .max_rows = options.max_step_tokens,
                     .max_sequences = options.max_running,
                     .max_pages_of_sequence = pages_of_sequence,
                     .kv_layout = needs.layout,
                     .weight_bytes = needs.weight_bytes,
                     .ranks = options.ranks},
                    ShardConfig(checkpoint.config(), options.shard.size));
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<Checkpoint> checkpoint, const Options& options,
                                                       const Clock& clock) {
  ASSIGN_OR_RETURN(Needs needs, Plan(*checkpoint, options));
  ASSIGN_OR_RETURN(std::unique_ptr<Ops> ops, MakeOps(*checkpoint, options, needs));
  ASSIGN_OR_RETURN(std::unique_ptr<DecoderModel> model,
                   LoadDecoderModel(*checkpoint, options.shard, *ops, options.max_step_tokens,
                                    std::min(options.max_step_tokens, options.max_running)));
  if (needs.layout.num_pages == 0) {
    constexpr int64_t kReservedBytes = int64_t{1} << 30;  // For recorded steps, and what the driver takes for kernels.
    ASSIGN_OR_RETURN(int64_t free, FreeDeviceBytes(*options.gpu));
    if (options.ranks != nullptr) {
      ASSIGN_OR_RETURN(free, LeastOfRanks(*options.ranks, free));
    }
    RETURN_IF_ERROR(SizePool(*checkpoint, options, free - kReservedBytes, needs));
  }
  return std::unique_ptr<Engine>(
      new Engine(std::move(checkpoint), options, clock, needs, std::move(ops), std::move(model)));
}

}  // namespace tandem
