#pragma once

#include <cstdint>

// Free of other headers, since CUDA compiles it.

namespace tandem {

// Copy lists as the GPU reads them: 8 bytes a run, or 16 where runs are unlike, so that a list travels in a small part
// of the time that its pages do.

// Where a run lies, in units of 1 << CopyShape::unit_shift bytes from the pools' beginnings.
struct DeviceRun {
  uint32_t source;
  uint32_t destination;
};

// How long it is, for lists of unlike runs.
struct DeviceExtent {
  uint32_t first_segment;  // Segments of all runs before it.
  uint32_t vectors;        // 16-byte vectors.
};

// A run is cut into segments of this many 16-byte vectors, the last one shorter; each is copied by one group of lanes.
inline constexpr uint32_t kSegmentVectors = 256;
// Runs up to this size are one segment each, copied by fewer lanes.
inline constexpr uint32_t kSmallRunVectors = 128;

struct CopyShape {
  int unit_shift = 4;
  uint32_t num_runs = 0;
  uint32_t num_segments = 0;
  uint32_t uniform_vectors = 0;   // Of every run; 0 where they are unlike and extents say it.
  uint32_t segments_per_run = 1;  // Where they are alike.
  bool has_small_runs = false;    // All runs are at most kSmallRunVectors.
  uint64_t source_end = 0;        // Bytes from the pools' beginnings to the end of the last run.
  uint64_t destination_end = 0;
};

}  // namespace tandem
