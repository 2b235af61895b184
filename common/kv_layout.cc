#include "common/kv_layout.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace tandem {

std::string KvLayout::ToString() const {
  return absl::StrCat(num_layers, " layers, ", num_kv_heads, " heads of ", head_dim, ", ", num_planes, " planes, ",
                      element_bytes, " B elements, pages of ", page_tokens, " tokens, ", num_pages, " pages, tp ",
                      tp_rank, "/", tp_size);
}

absl::Status KvLayout::Validate() const {
  constexpr int kLimit = 1 << 30;
  for (int value : {num_layers, num_kv_heads, head_dim, num_planes, element_bytes, page_tokens, num_pages, tp_size}) {
    if (value < 1 || value > kLimit) return absl::InvalidArgumentError(absl::StrCat("impossible layout: ", ToString()));
  }
  if (tp_rank < 0 || tp_rank >= tp_size) {
    return absl::InvalidArgumentError(absl::StrCat("tp rank outside of tp size: ", ToString()));
  }
  if (num_kv_heads % tp_size != 0 && tp_size % num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("heads do not divide over tp ranks: ", ToString()));
  }
  return absl::OkStatus();
}

absl::Status CheckCompatible(const KvLayout& source, const KvLayout& destination) {
  RETURN_IF_ERROR(source.Validate());
  RETURN_IF_ERROR(destination.Validate());
  if (source.num_layers != destination.num_layers || source.num_kv_heads != destination.num_kv_heads ||
      source.head_dim != destination.head_dim || source.num_planes != destination.num_planes ||
      source.element_bytes != destination.element_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("KV layouts do not match: prefill has ", source.ToString(),
                                                   "; decode has ", destination.ToString()));
  }
  return absl::OkStatus();
}

}  // namespace tandem
