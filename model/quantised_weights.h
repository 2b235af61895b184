#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tensor.h"

namespace tandem {

// Joins the weights of a Hugging Face folder that are stored as several tensors: values of few bits, and their scales.
//
//   FP8   X.weight F8_E4M3 [out, in], X.weight_scale_inv [blocks of out, of in] or X.weight_scale
//   INT8  X.weight I8 [out, in], X.weight_scale
//   INT4  X.weight_packed I32 [out, in / 8], X.weight_shape, X.weight_scale [out, groups of in]
//   NVFP4 X.weight U8 [out, in / 2], X.weight_scale F8_E4M3 [out, in / 16], X.weight_scale_2; or as X.weight_packed
//   with
//         X.weight_global_scale, by which is divided
//
// as DeepSeek and Qwen ("fp8"), compressed-tensors and NVIDIA's ModelOpt ("modelopt") write them. weight_scale is one
// number, one for each row, for each group of a row, or for each block. Scales of activations and of the KV cache are
// left out: neither is stored in 8 bits here.
//
// Ownership: borrows what the tensors borrow.
class QuantisedWeights {
 public:
  // `config`: config.json. UNIMPLEMENTED: another quant_method.
  static absl::StatusOr<QuantisedWeights> OfConfig(absl::string_view config);

  // Whether the tensor is a part of such a weight, which is kept then.
  bool Take(const TensorView& tensor);
  // Each of the weights, as X.weight. INVALID_ARGUMENT names a weight whose parts do not go together; UNIMPLEMENTED:
  // one with zero points, or with a part that is not known here.
  absl::StatusOr<std::vector<TensorView>> Join() const;

 private:
  using Parts = std::map<std::string, TensorView>;  // By suffix.
  absl::StatusOr<TensorView> JoinOne(const std::string& name, const Parts& parts) const;
  absl::Status AttachScales(const TensorView& table, TensorView& weight) const;
  std::map<std::string, Parts> weights_;  // By X.
  std::set<std::string> others_;          // Tensors that were not taken.
  int64_t block_rows_ = 128, block_columns_ = 128;
};

}  // namespace tandem
