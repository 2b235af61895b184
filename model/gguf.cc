#include "model/gguf.h"

#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/byte_reader.h"

namespace tandem {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF".
constexpr int kMaxDimensions = 4;

// Type numbers of metadata values, of the GGUF specification.
enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

std::optional<DType> DTypeOfGgml(uint32_t type) {
  switch (type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 6:
      return DType::kQ5_0;
    case 7:
      return DType::kQ5_1;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 24:
      return DType::kI8;
    case 26:
      return DType::kI32;
    case 27:
      return DType::kI64;
    case 30:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

absl::StatusOr<absl::string_view> ReadString(ByteReader& reader, absl::string_view what) {
  ASSIGN_OR_RETURN(uint64_t size, reader.Read<uint64_t>(what));
  return reader.ReadText(size, what);
}

template <typename T>
absl::StatusOr<int64_t> ReadAsInt(ByteReader& reader, absl::string_view what) {
  ASSIGN_OR_RETURN(T value, reader.Read<T>(what));
  if constexpr (std::is_same_v<T, uint64_t>) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::InvalidArgumentError(absl::StrCat("at byte ", reader.offset(), ": ", what, " is over 2^63"));
    }
  }
  return static_cast<int64_t>(value);
}

// Any integer type; nullopt for other types.
std::optional<absl::StatusOr<int64_t>> ReadInteger(ByteReader& reader, uint32_t type, absl::string_view what) {
  switch (type) {
    case kUint8:
      return ReadAsInt<uint8_t>(reader, what);
    case kInt8:
      return ReadAsInt<int8_t>(reader, what);
    case kUint16:
      return ReadAsInt<uint16_t>(reader, what);
    case kInt16:
      return ReadAsInt<int16_t>(reader, what);
    case kUint32:
      return ReadAsInt<uint32_t>(reader, what);
    case kInt32:
      return ReadAsInt<int32_t>(reader, what);
    case kUint64:
      return ReadAsInt<uint64_t>(reader, what);
    case kInt64:
      return ReadAsInt<int64_t>(reader, what);
    default:
      return std::nullopt;
  }
}

absl::StatusOr<GgufValue> ReadArray(ByteReader& reader, absl::string_view what) {
  ASSIGN_OR_RETURN(uint32_t type, reader.Read<uint32_t>(what));
  ASSIGN_OR_RETURN(uint64_t count, reader.Read<uint64_t>(what));
  if (count > reader.remaining()) {  // Each element takes a byte at least.
    return absl::OutOfRangeError(absl::StrCat("at byte ", reader.offset(), ": ", what, " claims ", count, " elements, ",
                                              reader.remaining(), " bytes are left"));
  }
  if (type == kString) {
    std::vector<absl::string_view> values;
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(absl::string_view value, ReadString(reader, what));
      values.push_back(value);
    }
    return GgufValue(std::move(values));
  }
  if (type == kFloat32 || type == kFloat64) {
    std::vector<double> values;
    for (uint64_t i = 0; i < count; ++i) {
      if (type == kFloat32) {
        ASSIGN_OR_RETURN(float value, reader.Read<float>(what));
        values.push_back(value);
      } else {
        ASSIGN_OR_RETURN(double value, reader.Read<double>(what));
        values.push_back(value);
      }
    }
    return GgufValue(std::move(values));
  }
  std::vector<int64_t> values;
  for (uint64_t i = 0; i < count; ++i) {
    auto value = ReadInteger(reader, type == kBool ? static_cast<uint32_t>(kUint8) : type, what);
    if (!value.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("at byte ", reader.offset(), ": ", what, ": arrays of type ", type, " are unknown"));
    }
    RETURN_IF_ERROR(value->status());
    values.push_back(**value);
  }
  return GgufValue(std::move(values));
}

absl::StatusOr<GgufValue> ReadValue(ByteReader& reader, uint32_t type, absl::string_view what) {
  switch (type) {
    case kFloat32: {
      ASSIGN_OR_RETURN(float value, reader.Read<float>(what));
      return GgufValue(static_cast<double>(value));
    }
    case kFloat64: {
      ASSIGN_OR_RETURN(double value, reader.Read<double>(what));
      return GgufValue(value);
    }
    case kBool: {
      ASSIGN_OR_RETURN(uint8_t value, reader.Read<uint8_t>(what));
      return GgufValue(value != 0);
    }
    case kString: {
      ASSIGN_OR_RETURN(absl::string_view value, ReadString(reader, what));
      return GgufValue(value);
    }
    case kArray:
      return ReadArray(reader, what);
    default: {
      auto value = ReadInteger(reader, type, what);
      if (!value.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("at byte ", reader.offset(), ": ", what, ": unknown value type ", type));
      }
      RETURN_IF_ERROR(value->status());
      return GgufValue(**value);
    }
  }
}

struct TensorEntry {
  TensorView tensor;  // Without data.
  uint64_t offset = 0;
  int64_t bytes = 0;
};

absl::StatusOr<TensorEntry> ReadTensorEntry(ByteReader& reader) {
  TensorEntry entry;
  ASSIGN_OR_RETURN(absl::string_view name, ReadString(reader, "tensor name"));
  entry.tensor.name = std::string(name);
  ASSIGN_OR_RETURN(uint32_t dimensions, reader.Read<uint32_t>("tensor dimensions"));
  if (dimensions == 0 || dimensions > kMaxDimensions) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has ", dimensions, " dimensions"));
  }
  entry.tensor.shape.resize(dimensions);
  for (uint32_t i = 0; i < dimensions; ++i) {  // The file says the innermost dimension first.
    ASSIGN_OR_RETURN(entry.tensor.shape[dimensions - 1 - i], ReadAsInt<uint64_t>(reader, "tensor dimension"));
  }
  ASSIGN_OR_RETURN(uint32_t type, reader.Read<uint32_t>("tensor type"));
  std::optional<DType> dtype = DTypeOfGgml(type);
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has ggml type ", type,
                                                   "; read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, "
                                                   "Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"));
  }
  entry.tensor.dtype = *dtype;
  ASSIGN_OR_RETURN(entry.offset, reader.Read<uint64_t>("tensor offset"));
  absl::StatusOr<int64_t> bytes = TensorBytes(entry.tensor.dtype, entry.tensor.shape);
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", bytes.status().message()));
  }
  entry.bytes = *bytes;
  return entry;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::unique_ptr<GgufFile> gguf(new GgufFile());
  if (absl::Status status = gguf->ParseBytes(file->bytes()); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
  }
  gguf->file_ = std::move(file);
  return gguf;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(absl::Span<const uint8_t> bytes) {
  std::unique_ptr<GgufFile> gguf(new GgufFile());
  RETURN_IF_ERROR(gguf->ParseBytes(bytes));
  return gguf;
}

absl::Status GgufFile::ParseBytes(absl::Span<const uint8_t> bytes) {
  ByteReader reader(bytes);
  ASSIGN_OR_RETURN(uint32_t magic, reader.Read<uint32_t>("magic"));
  if (magic != kMagic) return absl::InvalidArgumentError("not a GGUF file: it does not begin with \"GGUF\"");
  ASSIGN_OR_RETURN(uint32_t version, reader.Read<uint32_t>("version"));
  if (version != 2 && version != 3) {
    return absl::InvalidArgumentError(absl::StrCat("GGUF version ", version, "; read are 2 and 3"));
  }
  ASSIGN_OR_RETURN(uint64_t num_tensors, reader.Read<uint64_t>("tensor count"));
  ASSIGN_OR_RETURN(uint64_t num_keys, reader.Read<uint64_t>("metadata count"));
  if (num_tensors > reader.remaining() || num_keys > reader.remaining()) {
    return absl::InvalidArgumentError(
        absl::StrCat("claims ", num_tensors, " tensors and ", num_keys, " keys in ", bytes.size(), " bytes"));
  }
  for (uint64_t i = 0; i < num_keys; ++i) {
    ASSIGN_OR_RETURN(absl::string_view key, ReadString(reader, "metadata key"));
    ASSIGN_OR_RETURN(uint32_t type, reader.Read<uint32_t>(key));
    ASSIGN_OR_RETURN(GgufValue value, ReadValue(reader, type, key));
    if (!metadata_.emplace(std::string(key), std::move(value)).second) {
      return absl::InvalidArgumentError(absl::StrCat("metadata key ", key, " stands twice"));
    }
  }
  std::vector<TensorEntry> entries;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    ASSIGN_OR_RETURN(TensorEntry entry, ReadTensorEntry(reader));
    entries.push_back(std::move(entry));
  }
  uint64_t alignment = 32;
  if (HasKey("general.alignment")) {
    ASSIGN_OR_RETURN(int64_t value, GetInt("general.alignment"));
    if (value <= 0 || value > (1 << 20) || (value & (value - 1)) != 0) {
      return absl::InvalidArgumentError(absl::StrCat("general.alignment is ", value, ", no power of two"));
    }
    alignment = value;
  }
  uint64_t data_begin = (reader.offset() + alignment - 1) / alignment * alignment;
  absl::flat_hash_set<std::string> names;
  for (TensorEntry& entry : entries) {
    uint64_t begin = 0;
    bool overflow = __builtin_add_overflow(data_begin, entry.offset, &begin);
    if (overflow || entry.offset % alignment != 0 || begin > bytes.size() ||
        bytes.size() - begin < static_cast<uint64_t>(entry.bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", entry.tensor.name, " claims ", entry.bytes, " bytes at ", entry.offset, " of a data section of ",
          bytes.size() - std::min<uint64_t>(data_begin, bytes.size()), "; is the file complete?"));
    }
    if (!names.insert(entry.tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", entry.tensor.name, " stands twice"));
    }
    entry.tensor.data = bytes.subspan(begin, entry.bytes);
    tensors_.push_back(std::move(entry.tensor));
  }
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<const T*> GgufFile::Find(absl::string_view key, absl::string_view type) const {
  auto entry = metadata_.find(key);
  if (entry == metadata_.end()) return absl::NotFoundError(absl::StrCat("metadata key ", key, " is missing"));
  const T* value = std::get_if<T>(&entry->second);
  if (value == nullptr) return absl::InvalidArgumentError(absl::StrCat("metadata key ", key, " is no ", type));
  return value;
}

absl::StatusOr<int64_t> GgufFile::GetInt(absl::string_view key) const {
  ASSIGN_OR_RETURN(const int64_t* value, Find<int64_t>(key, "integer"));
  return *value;
}

absl::StatusOr<double> GgufFile::GetFloat(absl::string_view key) const {
  ASSIGN_OR_RETURN(const double* value, Find<double>(key, "number"));
  return *value;
}

absl::StatusOr<std::string> GgufFile::GetString(absl::string_view key) const {
  ASSIGN_OR_RETURN(const absl::string_view* value, Find<absl::string_view>(key, "text"));
  return std::string(*value);
}

absl::StatusOr<absl::Span<const absl::string_view>> GgufFile::GetStrings(absl::string_view key) const {
  ASSIGN_OR_RETURN(const auto* value, Find<std::vector<absl::string_view>>(key, "list of texts"));
  return absl::MakeConstSpan(*value);
}

absl::StatusOr<absl::Span<const int64_t>> GgufFile::GetInts(absl::string_view key) const {
  ASSIGN_OR_RETURN(const auto* value, Find<std::vector<int64_t>>(key, "list of integers"));
  return absl::MakeConstSpan(*value);
}

absl::StatusOr<absl::Span<const double>> GgufFile::GetFloats(absl::string_view key) const {
  ASSIGN_OR_RETURN(const auto* value, Find<std::vector<double>>(key, "list of numbers"));
  return absl::MakeConstSpan(*value);
}

bool GgufFile::GetBool(absl::string_view key, bool default_value) const {
  auto value = Find<bool>(key, "boolean");
  return value.ok() ? **value : default_value;
}

}  // namespace tandem
