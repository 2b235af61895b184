#include "engine/cuda/step_inputs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {
namespace {

// Deals out stretches of one buffer, the same offsets on the host and on the device.
class Layout {
 public:
  template <typename T>
  size_t Add(int64_t count) {
    const size_t at = bytes_;
    bytes_ += (count * sizeof(T) + 15) / 16 * 16;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepInputs>> StepInputs::Create(const Limits& limits, const AttentionSplitter& splitter,
                                                               cudaStream_t stream) {
  Layout layout;
  for (int i = 0; i < 4; ++i) layout.Add<int32_t>(limits.max_rows);
  layout.Add<SequenceView>(limits.max_rows);
  layout.Add<AttentionPart>(splitter.MostParts(limits.max_rows));
  layout.Add<AttentionPart>(splitter.MostParts(limits.max_sequences));
  layout.Add<int32_t>(limits.max_pages);
  std::unique_ptr<StepInputs> inputs(new StepInputs(splitter, stream));
  ASSIGN_OR_RETURN(inputs->device_, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, layout.bytes()));
  ASSIGN_OR_RETURN(inputs->ring_, StagingRing::Create(layout.bytes(), stream));
  return inputs;
}

StepView StepInputs::Upload(const StepBatch& batch, int padded_rows, bool keeps_whole) {
  const int rows = batch.rows(), padding = padded_rows - rows;
  const int num_sequences = static_cast<int>(batch.sequences.size()) + padding;
  const int num_logit_rows = static_cast<int>(batch.logit_rows.size()) + padding;
  Layout layout;
  const size_t tokens_at = layout.Add<int32_t>(padded_rows), positions_at = layout.Add<int32_t>(padded_rows);
  const size_t sequence_of_row_at = layout.Add<int32_t>(padded_rows);
  const size_t logit_rows_at = layout.Add<int32_t>(num_logit_rows);
  const size_t sequences_at = layout.Add<SequenceView>(num_sequences);
  const int num_parts = splitter_.NumParts(num_sequences);
  const size_t parts_at = layout.Add<AttentionPart>(num_parts);
  const bool has_other_rows = batch.logit_rows.size() < static_cast<size_t>(rows);
  const int num_logit_parts = has_other_rows ? splitter_.NumParts(num_logit_rows) : 0;
  const size_t logit_parts_at = layout.Add<AttentionPart>(num_logit_parts);
  int64_t num_pages = 0;
  for (const BatchSequence& sequence : batch.sequences) num_pages += static_cast<int64_t>(sequence.pages.size());
  const size_t pages_at = layout.Add<int32_t>(num_pages);

  uint8_t* host = ring_->Acquire();
  const auto ints = [&](size_t at) { return reinterpret_cast<int32_t*>(host + at); };
  std::copy(batch.tokens.begin(), batch.tokens.end(), ints(tokens_at));
  std::copy(batch.positions.begin(), batch.positions.end(), ints(positions_at));
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), ints(logit_rows_at));
  auto* sequences = reinterpret_cast<SequenceView*>(host + sequences_at);
  int32_t page = 0;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const BatchSequence& from = batch.sequences[i];
    sequences[i] = {from.first_row, from.num_rows, from.context_tokens, page};
    std::fill_n(ints(sequence_of_row_at) + from.first_row, from.num_rows, static_cast<int32_t>(i));
    std::copy(from.pages.begin(), from.pages.end(), ints(pages_at) + page);
    page += static_cast<int32_t>(from.pages.size());
  }
  for (int i = 0; i < padding; ++i) {
    ints(tokens_at)[rows + i] = ints(positions_at)[rows + i] = 0;
    ints(logit_rows_at)[num_logit_rows - padding + i] = rows + i;
    ints(sequence_of_row_at)[rows + i] = num_sequences - padding + i;
    sequences[num_sequences - padding + i] = {rows + i, 1, 0, 0};
  }
  auto* parts = reinterpret_cast<AttentionPart*>(host + parts_at);
  const absl::Span<const SequenceView> all(sequences, num_sequences);
  keeps_whole ? splitter_.KeepWhole(all, parts) : splitter_.Split(all, parts);
  if (has_other_rows) {
    std::vector<SequenceView> singles;
    for (const int32_t row : batch.logit_rows) {
      const SequenceView& sequence = sequences[ints(sequence_of_row_at)[row]];
      singles.push_back({static_cast<int32_t>(singles.size()), 1, batch.positions[row] + 1, sequence.first_page});
    }
    splitter_.Split(singles, reinterpret_cast<AttentionPart*>(host + logit_parts_at));
  }
  CheckCuda(cudaMemcpyAsync(device_.as<void>(), host, layout.bytes(), cudaMemcpyHostToDevice, stream_),
            "cudaMemcpyAsync");
  ring_->Release();

  const uint8_t* device = device_.as<uint8_t>();
  const auto device_ints = [&](size_t at) { return reinterpret_cast<const int32_t*>(device + at); };
  return {.tokens = device_ints(tokens_at),
          .positions = device_ints(positions_at),
          .sequence_of_row = device_ints(sequence_of_row_at),
          .sequences = reinterpret_cast<const SequenceView*>(device + sequences_at),
          .parts = reinterpret_cast<const AttentionPart*>(device + parts_at),
          .logit_parts = reinterpret_cast<const AttentionPart*>(device + logit_parts_at),
          .logit_rows = device_ints(logit_rows_at),
          .pages = device_ints(pages_at),
          .rows = padded_rows,
          .num_sequences = num_sequences,
          .num_parts = num_parts,
          .num_logit_parts = num_logit_parts,
          .num_logit_rows = num_logit_rows};
}

}  // namespace tandem
