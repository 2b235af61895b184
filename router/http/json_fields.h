#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

// Reads the fields of clients' JSON, with errors that name them. For .cc files only: it brings in Boost.JSON.

namespace tandem {

inline absl::string_view View(const boost::json::string& text) { return {text.data(), text.size()}; }

inline absl::Status WrongType(absl::string_view field, absl::string_view expected, const boost::json::value& got) {
  static constexpr absl::string_view kKinds[] = {"null",     "a boolean", "an integer", "an integer",
                                                 "a number", "a string",  "an array",   "an object"};
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": expected ", expected, ", got ", kKinds[static_cast<int>(got.kind())]));
}

// A number without a fraction, whether written as 5 or as 5.0.
inline std::optional<int64_t> WholeNumber(const boost::json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_uint64()) return std::nullopt;  // Over what fits.
  if (value.is_double() && std::trunc(value.get_double()) == value.get_double() &&
      std::abs(value.get_double()) < 9e15) {
    return static_cast<int64_t>(value.get_double());
  }
  return std::nullopt;
}

// The fields of one JSON object. Getters leave the target as it is where a field is missing or null, and keep the
// first error.
class Fields {
 public:
  explicit Fields(const boost::json::object& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // Null where it is missing or null.
  const boost::json::value* Find(absl::string_view name) const {
    const boost::json::value* value = object_.if_contains({name.data(), name.size()});
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  std::string NameOf(absl::string_view name) const { return absl::StrCat(prefix_, name); }

  void Get(absl::string_view name, bool& target) {
    if (const boost::json::value* value = Find(name); value != nullptr) {
      if (value->is_bool()) {
        target = value->get_bool();
      } else {
        Keep(WrongType(NameOf(name), "true or false", *value));
      }
    }
  }
  void Get(absl::string_view name, std::string& target) {
    if (const boost::json::value* value = Find(name); value != nullptr) {
      if (value->is_string()) {
        target = std::string(View(value->get_string()));
      } else {
        Keep(WrongType(NameOf(name), "a string", *value));
      }
    }
  }
  void Get(absl::string_view name, float& target) {
    if (const boost::json::value* value = Find(name); value != nullptr) {
      if (value->is_number()) {
        target = value->to_number<float>();
      } else {
        Keep(WrongType(NameOf(name), "a number", *value));
      }
    }
  }
  void Get(absl::string_view name, int& target) {
    if (const boost::json::value* value = Find(name); value != nullptr) {
      const std::optional<int64_t> number = WholeNumber(*value);
      if (!number.has_value()) {
        Keep(WrongType(NameOf(name), "an integer", *value));
      } else if (*number < std::numeric_limits<int>::min() || *number > std::numeric_limits<int>::max()) {
        Keep(absl::InvalidArgumentError(absl::StrCat(NameOf(name), ": out of range, got ", *number)));
      } else {
        target = static_cast<int>(*number);
      }
    }
  }
  void Keep(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  // For fields that would change the answer.
  void Refuse(absl::string_view name, absl::string_view why) {
    Keep(absl::InvalidArgumentError(absl::StrCat(NameOf(name), ": ", why)));
  }
  const absl::Status& status() const { return status_; }

 private:
  const boost::json::object& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace tandem
