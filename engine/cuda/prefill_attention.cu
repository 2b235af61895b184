#include "engine/cuda/prefill_attention.h"

#include <cmath>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/cutlass_utils.cuh>

namespace tandem {
namespace {

using Element = cutlass::bfloat16_t;
using Parameters = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;

template <int kHeadDim, bool kSameForAllHeads>
cudaError_t Launch(Parameters& parameters, cudaStream_t stream) {
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<kHeadDim, kHeadDim, flashinfer::MaskMode::kCausal,
                                                            /*LEFT_SLIDING_WINDOW=*/false, kSameForAllHeads,
                                                            flashinfer::StandardAttention>(
      parameters, /*enable_pdl=*/false, stream);
}

// FlashInfer's structs have pointers to what they only read.
template <typename To, typename From>
To* Unconst(const From* pointer) {
  return reinterpret_cast<To*>(const_cast<From*>(pointer));
}

}  // namespace

bool HasPrefillAttention(const HeadShape& shape, int compute_major) {
  return compute_major == 9 && (shape.head_dim == 64 || shape.head_dim == 128);
}

cudaError_t MakePrefillPlan(const HeadShape& shape, const int32_t* first_rows, const int32_t* first_pages,
                            const int32_t* contexts, int count, void* device, void* host, cudaStream_t stream,
                            PrefillPlan* plan) {
  flashinfer::PrefillPlanSM90Info info;
  const cudaError_t error = flashinfer::PrefillSM90Plan<int32_t>(
      nullptr, 0, device, host, kPrefillWorkspaceBytes, info, Unconst<int32_t>(first_rows),
      Unconst<int32_t>(first_pages), Unconst<int32_t>(contexts), first_rows[count] - first_rows[0], count,
      shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.head_dim, /*page_size=*/1, /*causal=*/true,
      /*enable_cuda_graph=*/false, sizeof(Element), stream);
  const auto at = [device](int64_t offset) {
    return reinterpret_cast<const int32_t*>(static_cast<uint8_t*>(device) + offset);
  };
  plan->qo_tiles = at(info.qo_tile_indices_offset);
  plan->qo_begins = at(info.qo_indptr_offset);
  plan->kv_begins = at(info.kv_indptr_offset);
  plan->qo_lengths = at(info.qo_len_offset);
  plan->kv_lengths = at(info.kv_len_offset);
  plan->heads = at(info.head_indices_offset);
  plan->work_begins = at(info.work_indptr_offset);
  plan->batches = at(info.batch_indices_offset);
  plan->same_for_all_heads = info.same_schedule_for_all_heads;
  return error;
}

cudaError_t LaunchPrefillAttention(const PrefillAttentionArguments& a, const PrefillPlan& plan, cudaStream_t stream) {
  const HeadShape& shape = a.shape;
  Parameters p = {};
  p.q_ptr = Unconst<Element>(a.qkv);
  p.k_ptr = reinterpret_cast<Element*>(a.pages.base);
  p.v_ptr = reinterpret_cast<Element*>(a.pages.base + a.pages.value_offset);
  p.o_ptr = reinterpret_cast<Element*>(a.out);
  p.qo_tile_indices = Unconst<int32_t>(plan.qo_tiles);
  p.qo_indptr = Unconst<int32_t>(plan.qo_begins);
  p.kv_indptr = Unconst<int32_t>(plan.kv_begins);
  p.kv_indices = Unconst<int32_t>(a.page_table);
  p.qo_lens = Unconst<int32_t>(plan.qo_lengths);
  p.kv_lens = Unconst<int32_t>(plan.kv_lengths);
  p.head_indices = Unconst<int32_t>(plan.heads);
  p.work_indptr = Unconst<int32_t>(plan.work_begins);
  p.batch_indices = Unconst<int32_t>(plan.batches);
  p.additional_params.sm_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  p.q_stride_n = int64_t{shape.num_heads + 2 * shape.num_kv_heads} * shape.head_dim;
  p.q_stride_h = shape.head_dim;
  p.o_stride_n = int64_t{shape.num_heads} * shape.head_dim;
  p.o_stride_h = shape.head_dim;
  p.k_stride_n = p.v_stride_n = shape.head_dim;
  p.k_stride_h = p.v_stride_h = a.pages.head_bytes / static_cast<int64_t>(sizeof(Element));
  p.k_page_stride = p.v_page_stride = a.pages.page_bytes / static_cast<int64_t>(sizeof(Element));
  p.nnz_qo = a.rows;
  p.num_qo_heads = shape.num_heads;
  p.num_kv_heads = shape.num_kv_heads;
  p.group_size = shape.num_heads / shape.num_kv_heads;
  p.page_size = a.pages.page_tokens;
  p.window_left = -1;
  p.causal = true;
  if (shape.head_dim == 64) {
    return plan.same_for_all_heads ? Launch<64, true>(p, stream) : Launch<64, false>(p, stream);
  }
  return plan.same_for_all_heads ? Launch<128, true>(p, stream) : Launch<128, false>(p, stream);
}

}  // namespace tandem
