#include "engine/cuda/chunk_attention.h"

#include <numeric>
#include <vector>

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/float8_kernels.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<ChunkAttention>> ChunkAttention::Create(const HeadShape& shape, const KvLayout& layout,
                                                                       int64_t max_pages_of_sequence, int compute_major,
                                                                       cudaStream_t stream) {
  if (!HasPrefillAttention(shape, compute_major)) return nullptr;
  std::unique_ptr<ChunkAttention> attention(new ChunkAttention(shape, layout, max_pages_of_sequence, stream));
  const auto allocate = [](int64_t bytes) { return DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes); };
  ASSIGN_OR_RETURN(attention->workspace_, allocate(kPrefillWorkspaceBytes));
  ASSIGN_OR_RETURN(attention->staging_, StagingRing::Create(kPrefillWorkspaceBytes, stream));
  if (!attention->is_float8()) return attention;
  std::vector<int32_t> numbers(max_pages_of_sequence);
  std::iota(numbers.begin(), numbers.end(), 0);
  const int64_t table_bytes = max_pages_of_sequence * int64_t{sizeof(int32_t)};
  ASSIGN_OR_RETURN(attention->numbers_, allocate(table_bytes));
  CheckCuda(cudaMemcpyAsync(attention->numbers_.as<void>(), numbers.data(), table_bytes, cudaMemcpyDefault, stream),
            "cudaMemcpyAsync");
  CheckCuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  ASSIGN_OR_RETURN(attention->widened_,
                   allocate(max_pages_of_sequence * layout.layer_bytes() * int64_t{sizeof(__nv_bfloat16)}));
  return attention;
}

bool ChunkAttention::Takes(const StepBatch& batch) const {
  if (!is_float8()) return true;
  int64_t pages = 0;
  for (const BatchSequence& sequence : batch.sequences) {
    if (sequence.num_rows > 1) pages += static_cast<int64_t>(sequence.pages.size());
  }
  return pages <= max_pages_;
}

bool ChunkAttention::Plan(const StepBatch& batch) {
  std::vector<int32_t> first_rows, first_pages, contexts;
  int32_t page = 0;
  for (const BatchSequence& sequence : batch.sequences) {
    if (sequence.num_rows > 1) {
      first_rows.push_back(sequence.first_row);
      first_pages.push_back(page);
      contexts.push_back(sequence.context_tokens);
    }
    page += static_cast<int32_t>(sequence.pages.size());
  }
  if (contexts.empty()) return false;
  first_rows.push_back(batch.rows());
  first_pages.push_back(page);
  chunk_pages_ = {first_pages.front(), page - first_pages.front()};
  if (is_float8()) {  // They lie by themselves.
    for (int32_t& first : first_pages) first -= chunk_pages_.first;
  }
  CheckCuda(
      MakePrefillPlan(shape_, first_rows.data(), first_pages.data(), contexts.data(), static_cast<int>(contexts.size()),
                      workspace_.as<void>(), staging_->Acquire(), stream_, &plan_),
      "MakePrefillPlan");
  staging_->Release();
  return true;
}

cudaError_t ChunkAttention::Attend(const LayerPages& pages, const int32_t* page_table, const __nv_bfloat16* qkv,
                                   int rows, __nv_bfloat16* out) {
  PrefillAttentionArguments arguments;
  arguments.shape = shape_;
  arguments.pages = pages;
  arguments.page_table = page_table;
  arguments.qkv = qkv;
  arguments.rows = rows;
  arguments.out = out;
  if (is_float8()) {
    const cudaError_t error =
        LaunchWidenPages(pages.base, pages.page_bytes, layout_.layer_bytes(), page_table + chunk_pages_.first,
                         chunk_pages_.count, widened_.as<__nv_bfloat16>(), stream_);
    if (error != cudaSuccess) return error;
    arguments.pages.base = widened_.as<uint8_t>();
    arguments.pages.page_bytes = layout_.layer_bytes() * 2;
    arguments.pages.value_offset *= 2;
    arguments.pages.head_bytes *= 2;
    arguments.pages.is_float8 = false;
    arguments.page_table = numbers_.as<const int32_t>();
  }
  return LaunchPrefillAttention(arguments, plan_, stream_);
}

}  // namespace tandem
