#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/value.h"

namespace tandem::jinja {

// Filters, tests and methods of the subset. INVALID_ARGUMENT for unknown names and wrong types.

// `name` applied to `input`. Filters that call others (map, select) do it through this, too.
absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input, const Arguments& arguments);
absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& input, const Arguments& arguments);

// A method of a string, list or dict, bound to it; undefined when there is none.
Value FindMethod(const Value& object, absl::string_view name);

// The items that a loop over the value visits: of a list, the keys of a dict, the characters of a
// string.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value);

// An element by key or position; undefined when there is none.
Value GetItem(const Value& object, const Value& key);
// `object.name`: an element, then a method.
Value GetAttribute(const Value& object, absl::string_view name);

}  // namespace tandem::jinja
