#include "model/safetensors.h"

#include <algorithm>
#include <boost/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/byte_reader.h"

namespace tandem {
namespace {

namespace json = boost::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // The format's own limit.

std::optional<DType> DTypeOfName(absl::string_view name) {
  for (DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kU8, DType::kI8, DType::kI32, DType::kI64}) {
    if (DTypeName(dtype) == name) return dtype;
  }
  return std::nullopt;
}

// A list of numbers from 0; nullopt for anything else.
std::optional<std::vector<int64_t>> AsSizes(const json::value* value) {
  if (value == nullptr || !value->is_array()) return std::nullopt;
  std::vector<int64_t> sizes;
  for (const json::value& item : value->as_array()) {
    if (!item.is_int64() || item.as_int64() < 0) return std::nullopt;
    sizes.push_back(item.as_int64());
  }
  return sizes;
}

absl::StatusOr<TensorView> ParseEntry(absl::string_view name, const json::value& entry,
                                      absl::Span<const uint8_t> data) {
  auto error = [name](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", what));
  };
  const json::object* object = entry.if_object();
  if (object == nullptr) return error("its entry is no JSON object");
  const json::value* dtype_value = object->if_contains("dtype");
  if (dtype_value == nullptr || !dtype_value->is_string()) return error("has no dtype");
  absl::string_view dtype_name(dtype_value->as_string().data(), dtype_value->as_string().size());
  std::optional<DType> dtype = DTypeOfName(dtype_name);
  if (!dtype.has_value()) return error(absl::StrCat("unknown dtype ", dtype_name));
  std::optional<std::vector<int64_t>> shape = AsSizes(object->if_contains("shape"));
  if (!shape.has_value()) return error("shape must be a list of numbers from 0");
  std::optional<std::vector<int64_t>> offsets = AsSizes(object->if_contains("data_offsets"));
  if (!offsets.has_value() || offsets->size() != 2) return error("data_offsets must be two numbers");
  int64_t begin = (*offsets)[0], end = (*offsets)[1];
  if (begin > end || static_cast<uint64_t>(end) > data.size()) {
    return error(absl::StrCat("data_offsets [", begin, ", ", end, ") leave the ", data.size(), " data bytes"));
  }
  absl::StatusOr<int64_t> bytes = TensorBytes(*dtype, *shape);
  if (!bytes.ok()) return error(bytes.status().message());
  if (*bytes != end - begin) {
    return error(absl::StrCat("shape needs ", *bytes, " bytes, data_offsets give ", end - begin));
  }
  return TensorView{std::string(name), *dtype, *std::move(shape), data.subspan(begin, end - begin)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  absl::StatusOr<std::vector<TensorView>> tensors = Parse(file->bytes());
  if (!tensors.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", tensors.status().message()));
  }
  return std::unique_ptr<SafetensorsFile>(new SafetensorsFile(std::move(file), *std::move(tensors)));
}

absl::StatusOr<std::vector<TensorView>> SafetensorsFile::Parse(absl::Span<const uint8_t> bytes) {
  ByteReader reader(bytes);
  ASSIGN_OR_RETURN(uint64_t header_bytes, reader.Read<uint64_t>("header size"));
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("header of ", header_bytes, " bytes is over ", kMaxHeaderBytes));
  }
  ASSIGN_OR_RETURN(absl::string_view header, reader.ReadText(header_bytes, "header"));
  json::error_code error;
  json::value root = json::parse({header.data(), header.size()}, error);
  if (error || !root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("header is no JSON object: ", error.message()));
  }
  absl::Span<const uint8_t> data = bytes.subspan(reader.offset());
  std::vector<TensorView> tensors;
  for (const auto& entry : root.as_object()) {
    absl::string_view name(entry.key().data(), entry.key().size());
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(TensorView tensor, ParseEntry(name, entry.value(), data));
    tensors.push_back(std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorView& a, const TensorView& b) { return a.data.data() < b.data.data(); });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i - 1].data.data() + tensors[i - 1].data.size() > tensors[i].data.data()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensors ", tensors[i - 1].name, " and ", tensors[i].name, " overlap"));
    }
  }
  return tensors;
}

SafetensorsFile::SafetensorsFile(std::unique_ptr<MappedFile> file, std::vector<TensorView> tensors)
    : file_(std::move(file)), tensors_(std::move(tensors)) {}

}  // namespace tandem
