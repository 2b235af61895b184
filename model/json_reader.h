#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace tandem {

// Reads settings of a JSON object, with errors that name the key. For .cc files of model/ only: it
// brings in Boost.JSON's headers.
//
// Ownership: borrows the object.
class JsonReader {
 public:
  // `path` goes before keys in errors: "rope_scaling.".
  JsonReader(const boost::json::object& object, std::string path) : object_(object), path_(std::move(path)) {}

  // Null where the key is missing or null.
  const boost::json::value* Find(absl::string_view key) const {
    const boost::json::value* value = object_.if_contains({key.data(), key.size()});
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  absl::Status Error(absl::string_view key, absl::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, key, ": ", message));
  }
  absl::StatusOr<int64_t> Int(absl::string_view key, std::optional<int64_t> default_value = std::nullopt) const {
    const boost::json::value* value = Find(key);
    if (value == nullptr && default_value.has_value()) return *default_value;
    if (value == nullptr) return Error(key, "is missing");
    if (!value->is_int64()) return Error(key, "expected a whole number");
    return value->as_int64();
  }
  // A size, from 1 to `max`: anything else is an error, and never cut down to an int.
  absl::Status Size(absl::string_view key, int64_t max, int& size,
                    std::optional<int64_t> default_value = std::nullopt) const {
    absl::StatusOr<int64_t> value = Int(key, default_value);
    if (!value.ok()) return value.status();
    if (*value < 1 || *value > max) {
      return Error(key, absl::StrCat("expected a number from 1 to ", max, ", got ", *value));
    }
    size = static_cast<int>(*value);
    return absl::OkStatus();
  }
  absl::StatusOr<double> Number(absl::string_view key, std::optional<double> default_value = std::nullopt) const {
    const boost::json::value* value = Find(key);
    if (value == nullptr && default_value.has_value()) return *default_value;
    if (value == nullptr) return Error(key, "is missing");
    if (!value->is_number()) return Error(key, "expected a number");
    return value->to_number<double>();
  }
  absl::StatusOr<bool> Bool(absl::string_view key, bool default_value) const {
    const boost::json::value* value = Find(key);
    if (value == nullptr) return default_value;
    if (!value->is_bool()) return Error(key, "expected true or false");
    return value->as_bool();
  }
  absl::StatusOr<std::string> String(absl::string_view key,
                                     std::optional<std::string> default_value = std::nullopt) const {
    const boost::json::value* value = Find(key);
    if (value == nullptr && default_value.has_value()) return *default_value;
    if (value == nullptr) return Error(key, "is missing");
    if (!value->is_string()) return Error(key, "expected a text");
    return std::string(value->as_string());
  }
  const boost::json::object& object() const { return object_; }

 private:
  const boost::json::object& object_;
  std::string path_;
};

// INVALID_ARGUMENT, naming `what` and the byte, unless the text is one JSON object.
inline absl::StatusOr<boost::json::object> ParseJsonObject(absl::string_view text, absl::string_view what) {
  boost::json::error_code error;
  boost::json::stream_parser parser;
  size_t used = parser.write_some(text.data(), text.size(), error);
  if (!error && used == text.size()) parser.finish(error);
  if (error || used != text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": not JSON at byte ", used, ": ", error ? error.message() : "text after the end"));
  }
  boost::json::value value = parser.release();
  if (!value.is_object()) return absl::InvalidArgumentError(absl::StrCat(what, ": no JSON object"));
  return std::move(value.as_object());
}

}  // namespace tandem
