#include "engine/step_plan.h"

#include <cstdint>
#include <cstring>

namespace tandem {
namespace {

struct Header {
  int32_t samples = 0;
  int64_t num_rows = 0, num_sequences = 0, num_logit_rows = 0, num_pages = 0;
};

struct PlannedSequence {
  int32_t first_row = 0, num_rows = 0, context_tokens = 0, num_pages = 0;
};

static_assert(sizeof(TokenId) == sizeof(int32_t) && sizeof(PageIndex) == sizeof(int32_t));

template <typename T>
void Append(std::string& text, const T* values, size_t count) {
  text.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

template <typename T>
bool Take(absl::string_view& text, int64_t count, T* values) {
  if (count < 0 || static_cast<uint64_t>(count) > text.size() / sizeof(T)) return false;
  if (count > 0) std::memcpy(values, text.data(), count * sizeof(T));
  text.remove_prefix(count * sizeof(T));
  return true;
}

template <typename T>
bool TakeVector(absl::string_view& text, int64_t count, std::vector<T>& values) {
  if (count < 0 || static_cast<uint64_t>(count) > text.size() / sizeof(T)) return false;
  values.resize(count);
  return Take(text, count, values.data());
}

}  // namespace

std::string EncodeStepPlan(const StepBatch& batch, bool samples) {
  Header header{.samples = samples,
                .num_rows = batch.rows(),
                .num_sequences = static_cast<int64_t>(batch.sequences.size()),
                .num_logit_rows = static_cast<int64_t>(batch.logit_rows.size())};
  for (const BatchSequence& sequence : batch.sequences) header.num_pages += static_cast<int64_t>(sequence.pages.size());
  std::string text;
  text.reserve(sizeof(header) + 8 * header.num_rows + sizeof(PlannedSequence) * header.num_sequences +
               4 * (header.num_logit_rows + header.num_pages));
  Append(text, &header, 1);
  Append(text, batch.tokens.data(), batch.tokens.size());
  Append(text, batch.positions.data(), batch.positions.size());
  Append(text, batch.logit_rows.data(), batch.logit_rows.size());
  for (const BatchSequence& sequence : batch.sequences) {
    const PlannedSequence planned{sequence.first_row, sequence.num_rows, sequence.context_tokens,
                                  static_cast<int32_t>(sequence.pages.size())};
    Append(text, &planned, 1);
  }
  for (const BatchSequence& sequence : batch.sequences) Append(text, sequence.pages.data(), sequence.pages.size());
  return text;
}

absl::StatusOr<StepPlan> DecodeStepPlan(absl::string_view text) {
  const auto error = [] { return absl::InvalidArgumentError("a step's plan is cut off"); };
  Header header;
  StepPlan plan;
  if (!Take(text, 1, &header)) return error();
  plan.samples = header.samples != 0;
  std::vector<PlannedSequence> sequences;
  if (!TakeVector(text, header.num_rows, plan.batch.tokens) ||
      !TakeVector(text, header.num_rows, plan.batch.positions) ||
      !TakeVector(text, header.num_logit_rows, plan.batch.logit_rows) ||
      !TakeVector(text, header.num_sequences, sequences) || !TakeVector(text, header.num_pages, plan.pages) ||
      !text.empty()) {
    return error();
  }
  int64_t page = 0;
  for (const PlannedSequence& sequence : sequences) {
    if (sequence.num_pages < 0 || sequence.num_pages > header.num_pages - page) return error();
    plan.batch.sequences.push_back({.first_row = sequence.first_row,
                                    .num_rows = sequence.num_rows,
                                    .context_tokens = sequence.context_tokens,
                                    .pages = absl::MakeConstSpan(plan.pages).subspan(page, sequence.num_pages)});
    page += sequence.num_pages;
  }
  return plan;
}

}  // namespace tandem
