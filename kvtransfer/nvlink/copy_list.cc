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

uint64_t SegmentsOf(uint64_t bytes) { return (bytes / kVectorBytes + kSegmentVectors - 1) / kSegmentVectors; }

// What all runs have in common.
struct Survey {
  uint64_t offset_bits = 0;  // Of all offsets, or'ed; the topmost one tells of a negative one.
  uint64_t size_bits = 0;
  uint64_t largest_offset = 0;
  uint64_t largest_size = 0;
  uint64_t source_end = 0, destination_end = 0;
  bool is_uniform = true;
  uint64_t segments = 0;
};

Survey Look(absl::Span<const CopyRun> runs) {
  Survey survey;
  for (const CopyRun& run : runs) {
    const auto source = static_cast<uint64_t>(run.source), destination = static_cast<uint64_t>(run.destination);
    const auto bytes = static_cast<uint64_t>(run.bytes);
    survey.offset_bits |= source | destination;
    survey.size_bits |= bytes;
    survey.largest_offset = std::max({survey.largest_offset, source, destination});
    survey.largest_size = std::max(survey.largest_size, bytes);
    survey.source_end = std::max(survey.source_end, source + bytes);
    survey.destination_end = std::max(survey.destination_end, destination + bytes);
    survey.is_uniform &= run.bytes == runs[0].bytes;
    survey.segments += SegmentsOf(bytes);
  }
  return survey;
}

}  // namespace

absl::StatusOr<CopyShape> PackRuns(absl::Span<const CopyRun> runs, DeviceRun* packed, DeviceExtent* extents) {
  const Survey survey = Look(runs);
  const uint64_t all_bits = survey.offset_bits | survey.size_bits;
  if (all_bits % kVectorBytes != 0 || all_bits >> 63 != 0) {
    return absl::InvalidArgumentError("runs must begin and end at multiples of 16 bytes, from 0 on");
  }
  CopyShape shape;
  shape.unit_shift = std::min(std::countr_zero(survey.offset_bits), kMaxUnitShift);
  if (survey.largest_offset >> shape.unit_shift > kMaxUnits || survey.segments > kMaxUnits ||
      survey.largest_size / kVectorBytes > kMaxUnits || runs.size() > kMaxUnits) {
    return absl::OutOfRangeError(absl::StrCat("runs aligned to ", uint64_t{1} << shape.unit_shift,
                                              " bytes reach offset ", survey.largest_offset, ", or are ", runs.size(),
                                              " of up to ", survey.largest_size, " bytes: too far or too many"));
  }
  shape.num_runs = static_cast<uint32_t>(runs.size());
  shape.num_segments = static_cast<uint32_t>(survey.segments);
  shape.has_small_runs = survey.largest_size <= kSmallRunVectors * kVectorBytes;
  shape.source_end = survey.source_end;
  shape.destination_end = survey.destination_end;
  if (survey.is_uniform && !runs.empty()) {
    shape.uniform_vectors = static_cast<uint32_t>(survey.largest_size / kVectorBytes);
    shape.segments_per_run = static_cast<uint32_t>(SegmentsOf(survey.largest_size));
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
