#include "model/quantised_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/json_reader.h"

namespace tandem {
namespace {

constexpr absl::string_view kSuffixes[] = {".weight_scale_inv", ".weight_scale", ".weight_scale_2",
                                           ".weight_packed",    ".weight_shape", ".weight_global_scale",
                                           ".weight_zero_point"};
constexpr absl::string_view kUnused[] = {".input_scale", ".input_global_scale", ".output_scale", ".k_scale",
                                         ".v_scale"};
constexpr int kGroupOfNvfp4 = 16;

bool IsQuantised(DType dtype) { return dtype == DType::kF8E4M3 || dtype == DType::kI8 || dtype == DType::kU8; }

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF8E4M3;
}

std::string Shape(const TensorView& tensor) {
  return absl::StrCat(DTypeName(tensor.dtype), " [", absl::StrJoin(tensor.shape, ", "), "]");
}

// Of floats; a table of FP8 is as large as a sixteenth of the weights, and is not looked through.
bool AreFinite(const TensorView& table) {
  if (table.dtype == DType::kF8E4M3) return true;
  std::vector<float> row(table.columns());
  for (int64_t i = 0; i < table.rows(); ++i) {
    DequantizeRow(table, i, table.columns(), row.data());
    if (!std::all_of(row.begin(), row.end(), [](float value) { return std::isfinite(value); })) return false;
  }
  return true;
}

// The only number of a tensor.
absl::StatusOr<float> Number(const TensorView& tensor) {
  if (tensor.num_elements() != 1 || !IsFloat(tensor.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(tensor.name, ": expected one number, got ", Shape(tensor)));
  }
  float value = 0;
  DequantizeRow(tensor, 0, 1, &value);
  return value;
}

}  // namespace

absl::StatusOr<QuantisedWeights> QuantisedWeights::OfConfig(absl::string_view config) {
  QuantisedWeights weights;
  ASSIGN_OR_RETURN(const boost::json::object object, ParseJsonObject(config, "config.json"));
  const boost::json::value* settings = JsonReader(object, "").Find("quantization_config");
  if (settings == nullptr) return weights;
  if (!settings->is_object()) return absl::InvalidArgumentError("config.json: quantization_config: expected an object");
  const JsonReader reader(settings->as_object(), "config.json: quantization_config.");
  ASSIGN_OR_RETURN(const std::string method, reader.String("quant_method", "modelopt"));
  if (method != "fp8" && method != "compressed-tensors" && method != "modelopt") {
    return absl::UnimplementedError(absl::StrCat("config.json: quantization_config.quant_method: ", method,
                                                 "; fp8, compressed-tensors and modelopt are read"));
  }
  if (reader.Find("transform_config") != nullptr) {
    return absl::UnimplementedError("config.json: quantization_config.transform_config: weights are read as they are");
  }
  const boost::json::value* block = reader.Find("weight_block_size");
  if (block == nullptr) return weights;
  if (!block->is_array() || block->as_array().size() != 2) {
    return reader.Error("weight_block_size", "expected two numbers");
  }
  for (const boost::json::value& size : block->as_array()) {
    if (!size.is_int64() || size.as_int64() < 1) return reader.Error("weight_block_size", "expected numbers over 0");
  }
  weights.block_rows_ = block->as_array()[0].as_int64();
  weights.block_columns_ = block->as_array()[1].as_int64();
  return weights;
}

bool QuantisedWeights::Take(const TensorView& tensor) {
  for (absl::string_view suffix : kUnused) {
    if (absl::EndsWith(tensor.name, suffix)) return true;
  }
  const auto keep = [&](absl::string_view suffix) {
    if (!absl::EndsWith(tensor.name, suffix)) return false;
    weights_[tensor.name.substr(0, tensor.name.size() - suffix.size())].emplace(suffix, tensor);
    return true;
  };
  for (absl::string_view suffix : kSuffixes) {
    if (keep(suffix)) return true;
  }
  if (IsQuantised(tensor.dtype) && keep(".weight")) return true;
  others_.insert(tensor.name);
  return false;
}

absl::StatusOr<std::vector<TensorView>> QuantisedWeights::Join() const {
  std::vector<TensorView> all;
  for (const auto& [name, parts] : weights_) {
    ASSIGN_OR_RETURN(TensorView weight, JoinOne(name, parts));
    all.push_back(std::move(weight));
  }
  return all;
}

absl::StatusOr<TensorView> QuantisedWeights::JoinOne(const std::string& name, const Parts& parts) const {
  const auto find = [&](const char* suffix) {
    auto part = parts.find(suffix);
    return part == parts.end() ? nullptr : &part->second;
  };
  const auto error = [&](absl::string_view message) {
    return absl::InvalidArgumentError(absl::StrCat("weight ", name, ": ", message));
  };
  // What is not known (an order of groups, a factor of the input) would change what the weight means.
  for (auto other = others_.lower_bound(name + "."); other != others_.end() && absl::StartsWith(*other, name + ".");
       ++other) {
    if (*other != name + ".bias" && *other != name + ".weight") {
      return absl::UnimplementedError(absl::StrCat("weight ", name, " has a part that is not read: ", *other));
    }
  }
  if (find(".weight_zero_point") != nullptr) {
    return absl::UnimplementedError(absl::StrCat("weight ", name, " has zero points; only symmetric ones are read"));
  }
  const TensorView* values = find(".weight") != nullptr ? find(".weight") : find(".weight_packed");
  if (values == nullptr) {
    return error(others_.contains(name + ".weight") ? "there are scales, and the values are no codes but floats"
                                                    : "there are scales, and no values");
  }
  if (values != find(".weight_packed") && find(".weight_packed") != nullptr) {
    return error("there are both weight and weight_packed");
  }
  if (values->shape.size() != 2) return error(absl::StrCat("expected a matrix, got ", Shape(*values)));
  TensorView weight = *values;
  weight.name = name + ".weight";
  if (values->dtype == DType::kU8) {
    weight.dtype = DType::kF4E2M1;
    weight.shape[1] *= 2;
  } else if (values->dtype == DType::kI32) {
    weight.dtype = DType::kI4;
    weight.shape[1] *= 8;
    const TensorView* shape = find(".weight_shape");
    int64_t stored[2];
    if (shape == nullptr || shape->dtype != DType::kI64 || shape->num_elements() != 2) {
      return error("weight_packed needs weight_shape, two numbers of I64");
    }
    std::memcpy(stored, shape->data.data(), sizeof(stored));
    if (stored[0] != weight.shape[0] || stored[1] != weight.shape[1]) {
      return error(absl::StrCat("weight_shape is [", stored[0], ", ", stored[1], "], and weight_packed ",
                                Shape(*values), "; only 4 bits, without padding, are read"));
    }
  } else if (values->dtype != DType::kF8E4M3 && values->dtype != DType::kI8) {
    return error(absl::StrCat("cannot be read as ", Shape(*values)));
  }
  const TensorView* table = find(".weight_scale_inv") != nullptr ? find(".weight_scale_inv") : find(".weight_scale");
  if (table == nullptr) return error(absl::StrCat(Shape(*values), " has no scale"));
  RETURN_IF_ERROR(AttachScales(*table, weight));
  if (weight.dtype == DType::kF4E2M1 && weight.scales.block_columns != kGroupOfNvfp4) {
    return error(absl::StrCat("4-bit floats are read with a scale for each ", kGroupOfNvfp4, ", got ", Shape(*table)));
  }
  if (!AreFinite(*table)) return error(absl::StrCat(table->name, " has values that are no finite numbers"));
  if (const TensorView* second = find(".weight_scale_2"); second != nullptr) {
    ASSIGN_OR_RETURN(weight.scales.factor, Number(*second));
  }
  if (const TensorView* global = find(".weight_global_scale"); global != nullptr) {
    ASSIGN_OR_RETURN(const float divisor, Number(*global));
    weight.scales.factor = 1 / divisor;
  }
  if (!std::isfinite(weight.scales.factor)) return error("its scale of scales is no finite number");
  return weight;
}

absl::Status QuantisedWeights::AttachScales(const TensorView& table, TensorView& weight) const {
  const int64_t rows = weight.shape[0], columns = weight.shape[1];
  const auto blocks = [](int64_t size, int64_t block) { return (size + block - 1) / block; };
  const bool is_vector = table.shape.size() == 1;
  const int64_t table_rows = is_vector ? table.shape[0] : table.rows(), table_columns = is_vector ? 1 : table.columns();
  BlockScales& scales = weight.scales;
  scales.dtype = table.dtype;
  scales.data = table.data;
  scales.table_columns = table_columns;
  if (!IsFloat(table.dtype) || table.shape.size() > 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(table.name, ": expected floats in one or two dimensions, got ", Shape(table)));
  }
  if (table.num_elements() == 1) {
    scales.block_rows = rows;
    scales.block_columns = columns;
  } else if (table_rows == rows && columns % table_columns == 0) {
    scales.block_columns = columns / table_columns;
  } else if (table_rows == blocks(rows, block_rows_) && table_columns == blocks(columns, block_columns_)) {
    scales.block_rows = block_rows_;
    scales.block_columns = block_columns_;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        table.name, " is ", Shape(table), ", which is neither one scale for ", weight.name, " [", rows, ", ", columns,
        "], nor for its rows or groups of them, nor for blocks of ", block_rows_, " x ", block_columns_));
  }
  return absl::OkStatus();
}

}  // namespace tandem
