#include "kvtransfer/nvlink/copy_list.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr uint64_t kVectorBytes = 16;
constexpr int kMaxUnitShift = 16;
constexpr uint64_t kMaxUnits = std::numeric_limits<uint32_t>::max();

bool LiesIn(int64_t offset, int64_t bytes, uint64_t pool_bytes) {
  return offset >= 0 && bytes >= 0 && static_cast<uint64_t>(bytes) <= pool_bytes &&
         static_cast<uint64_t>(offset) <= pool_bytes - bytes;
}

// What all runs have in common.
struct Survey {
  uint64_t offset_bits = 0;  // Of all offsets, or'ed.
  uint64_t size_bits = 0;
  uint64_t largest_offset = 0;
  int64_t largest = 0;
  bool is_uniform = true;
  uint64_t segments = 0;
};

uint64_t SegmentsOf(int64_t bytes) { return (bytes / kVectorBytes + kSegmentVectors - 1) / kSegmentVectors; }

absl::StatusOr<Survey> Look(absl::Span<const CopyRun> runs, uint64_t source_bytes, uint64_t destination_bytes) {
  Survey survey;
  for (const CopyRun& run : runs) {
    if (!LiesIn(run.source, run.bytes, source_bytes) || !LiesIn(run.destination, run.bytes, destination_bytes)) {
      return absl::OutOfRangeError(absl::StrCat("run of ", run.bytes, " bytes from ", run.source, " to ",
                                                run.destination, " leaves pools of ", source_bytes, " and ",
                                                destination_bytes, " bytes"));
    }
    survey.offset_bits |= static_cast<uint64_t>(run.source) | static_cast<uint64_t>(run.destination);
    survey.size_bits |= static_cast<uint64_t>(run.bytes);
    survey.largest_offset =
        std::max({survey.largest_offset, static_cast<uint64_t>(run.source), static_cast<uint64_t>(run.destination)});
    survey.largest = std::max(survey.largest, run.bytes);
    survey.is_uniform &= run.bytes == runs[0].bytes;
    survey.segments += SegmentsOf(run.bytes);
  }
  return survey;
}

}  // namespace

absl::StatusOr<CopyShape> PackRuns(absl::Span<const CopyRun> runs, uint64_t source_bytes, uint64_t destination_bytes,
                                   DeviceRun* packed, DeviceExtent* extents) {
  absl::StatusOr<Survey> survey = Look(runs, source_bytes, destination_bytes);
  if (!survey.ok()) return survey.status();
  if ((survey->offset_bits | survey->size_bits) % kVectorBytes != 0) {
    return absl::InvalidArgumentError("runs must begin and end at multiples of 16 bytes");
  }
  CopyShape shape;
  shape.unit_shift = std::min(std::countr_zero(survey->offset_bits), kMaxUnitShift);
  if (survey->largest_offset >> shape.unit_shift > kMaxUnits || survey->segments > kMaxUnits ||
      static_cast<uint64_t>(survey->largest) / kVectorBytes > kMaxUnits || runs.size() > kMaxUnits) {
    return absl::OutOfRangeError(absl::StrCat("a list of runs aligned to ", uint64_t{1} << shape.unit_shift,
                                              " bytes reaches offset ", survey->largest_offset, ", which is too far"));
  }
  shape.num_runs = static_cast<uint32_t>(runs.size());
  shape.num_segments = static_cast<uint32_t>(survey->segments);
  shape.has_small_runs = static_cast<uint64_t>(survey->largest) <= kSmallRunVectors * kVectorBytes;
  if (survey->is_uniform && !runs.empty()) {
    shape.uniform_vectors = static_cast<uint32_t>(runs[0].bytes / kVectorBytes);
    shape.segments_per_run = static_cast<uint32_t>(SegmentsOf(runs[0].bytes));
  }
  uint64_t segments = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    packed[i] = {static_cast<uint32_t>(runs[i].source >> shape.unit_shift),
                 static_cast<uint32_t>(runs[i].destination >> shape.unit_shift)};
    if (shape.uniform_vectors > 0) continue;
    extents[i] = {static_cast<uint32_t>(segments), static_cast<uint32_t>(runs[i].bytes / kVectorBytes)};
    segments += SegmentsOf(runs[i].bytes);
  }
  return shape;
}

}  // namespace tandem
