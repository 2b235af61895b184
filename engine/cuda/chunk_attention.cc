#include "engine/cuda/chunk_attention.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/float8_kernels.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<ChunkAttention>> ChunkAttention::Create(const Options& options, cudaStream_t stream) {
  if (!HasPrefillAttention(options.shape, options.compute_major)) return nullptr;
  std::unique_ptr<ChunkAttention> attention(new ChunkAttention(options, stream));
  const auto allocate = [](int64_t bytes) { return DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes); };
  ASSIGN_OR_RETURN(attention->device_plan_, allocate(attention->plan_bytes()));
  ASSIGN_OR_RETURN(attention->staging_, StagingRing::Create(attention->plan_bytes(), stream));
  if (!attention->is_float8()) return attention;
  const int64_t pages = options.max_pages_of_sequence;
  std::vector<int32_t> numbers(pages);
  std::iota(numbers.begin(), numbers.end(), 0);
  const int64_t table_bytes = pages * int64_t{sizeof(int32_t)};
  ASSIGN_OR_RETURN(attention->numbers_, allocate(table_bytes));
  CheckCuda(cudaMemcpyAsync(attention->numbers_.as<void>(), numbers.data(), table_bytes, cudaMemcpyDefault, stream),
            "cudaMemcpyAsync");
  CheckCuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  ASSIGN_OR_RETURN(attention->widened_,
                   allocate(pages * options.layout.layer_bytes() * int64_t{sizeof(__nv_bfloat16)}));
  return attention;
}

bool ChunkAttention::Takes(const StepBatch& batch) const {
  if (!is_float8()) return true;
  int64_t pages = 0;
  for (const BatchSequence& sequence : batch.sequences) {
    if (sequence.num_rows > 1) pages += static_cast<int64_t>(sequence.pages.size());
  }
  return pages <= options_.max_pages_of_sequence;
}

bool ChunkAttention::Plan(const StepBatch& batch) {
  std::vector<SequenceView> chunks;
  int32_t page = 0;
  for (const BatchSequence& sequence : batch.sequences) {
    if (sequence.num_rows > 1) {
      chunks.push_back({sequence.first_row, sequence.num_rows, sequence.context_tokens, page});
    }
    page += static_cast<int32_t>(sequence.pages.size());
  }
  if (chunks.empty()) return false;
  chunk_pages_ = {chunks.front().first_page, page - chunks.front().first_page};
  if (is_float8()) {  // They lie by themselves.
    for (SequenceView& chunk : chunks) chunk.first_page -= chunk_pages_.first;
  }
  const std::vector<PrefillTile> tiles = CutIntoTiles(chunks, PrefillTileRows(options_.shape));
  num_tiles_ = static_cast<int>(tiles.size());
  const size_t tile_bytes = tiles.size() * sizeof(PrefillTile);
  auto* const staged = static_cast<uint8_t*>(staging_->Acquire());
  std::memset(staged, 0, taken_bytes());
  std::memcpy(staged + taken_bytes(), tiles.data(), tile_bytes);
  CheckCuda(
      cudaMemcpyAsync(device_plan_.as<void>(), staged, taken_bytes() + tile_bytes, cudaMemcpyHostToDevice, stream_),
      "cudaMemcpyAsync");
  staging_->Release();
  return true;
}

cudaError_t ChunkAttention::Attend(int layer, const LayerPages& pages, const int32_t* page_table,
                                   const __nv_bfloat16* qkv, int rows, __nv_bfloat16* out) {
  PrefillAttentionArguments arguments;
  arguments.shape = options_.shape;
  arguments.pages = pages;
  arguments.page_table = page_table;
  arguments.qkv = qkv;
  arguments.rows = rows;
  arguments.tiles = reinterpret_cast<const PrefillTile*>(device_plan_.as<uint8_t>() + taken_bytes());
  arguments.num_tiles = num_tiles_;
  arguments.taken = device_plan_.as<int32_t>() + layer;
  arguments.out = out;
  if (is_float8()) {
    const int64_t layer_bytes = options_.layout.layer_bytes();
    const cudaError_t error =
        LaunchWidenPages(pages.base, pages.page_bytes, layer_bytes, page_table + chunk_pages_.first, chunk_pages_.count,
                         widened_.as<__nv_bfloat16>(), stream_);
    if (error != cudaSuccess) return error;
    arguments.pages.base = widened_.as<uint8_t>();
    arguments.pages.page_bytes = layer_bytes * 2;
    arguments.pages.value_offset *= 2;
    arguments.pages.head_bytes *= 2;
    arguments.pages.is_float8 = false;
    arguments.page_table = numbers_.as<const int32_t>();
  }
  return LaunchPrefillAttention(arguments, options_.multiprocessors, stream_);
}

}  // namespace tandem
