#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem::jinja {

struct List;
struct Dict;
struct Callable;
struct Undefined {
  std::string name;  // For errors.
};
struct None {};

// A value of the template language, with Python's meaning.
//
// Ownership: lists, dicts and callables are shared between the values that hold them, as in Python.
struct Value {
  std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<List>, std::shared_ptr<Dict>,
               std::shared_ptr<Callable>>
      data;

  Value() : data(Undefined()) {}
  Value(None none) : data(none) {}
  Value(bool value) : data(value) {}
  Value(int64_t value) : data(value) {}
  Value(int value) : data(static_cast<int64_t>(value)) {}
  Value(double value) : data(value) {}
  Value(std::string value) : data(std::move(value)) {}
  Value(absl::string_view value) : data(std::string(value)) {}
  Value(const char* value) : data(std::string(value)) {}
  Value(std::shared_ptr<List> value) : data(std::move(value)) {}
  Value(std::shared_ptr<Dict> value) : data(std::move(value)) {}
  Value(std::shared_ptr<Callable> value) : data(std::move(value)) {}

  template <typename T>
  const T* As() const {
    return std::get_if<T>(&data);
  }
  const std::string* AsString() const { return As<std::string>(); }
  List* AsList() const;
  Dict* AsDict() const;
  bool IsUndefined() const { return As<Undefined>() != nullptr; }
  bool IsNone() const { return As<None>() != nullptr; }
  bool IsNumber() const { return As<bool>() != nullptr || As<int64_t>() != nullptr || As<double>() != nullptr; }
  double ToDouble() const;  // Of a number.
  int64_t ToWhole() const;  // Of a number: without its fraction, and no further than int64_t goes.
  bool Truthy() const;
};

// How lists and dicts lie in one another. Only namespaces change once they are made, and none may come to hold a
// namespace: so values have no circles, and what is noted here stays true.
struct Nesting {
  int depth = 1;  // 1: holds no list or dict.
  bool holds_namespace = false;
  void Add(const Value& item);
};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  Nesting nesting;
};

// In order of insertion. Chat templates' dicts are small, so keys are searched one by one.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  bool is_namespace = false;
  Nesting nesting;
  const Value* Find(const Value& key) const;
  void Set(const Value& key, Value value);
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  // The argument by position or name; null when absent.
  const Value* Get(size_t position, absl::string_view name) const;
};

struct Callable {
  bool holds_namespace = false;
  std::function<absl::StatusOr<Value>(const Arguments&)> call;
};

// 0 for values that are no list or dict.
int NestingDepth(const Value& value);
// Whether the value is a namespace, or a list, dict or function that holds one.
bool HoldsNamespace(const Value& value);

Value MakeList(std::vector<Value> items);
Value MakeDict(std::vector<std::pair<Value, Value>> items);
Value MakeCallable(std::function<absl::StatusOr<Value>(const Arguments&)> call);

// False, too, for values so large that comparing them takes over a million steps.
bool Equal(const Value& a, const Value& b);
// -1, 0 or 1. INVALID_ARGUMENT for values that have no order.
absl::StatusOr<int> Compare(const Value& a, const Value& b);
// As Python's str() and repr(); cut somewhere past kMaxTextBytes.
std::string ToText(const Value& value);
std::string ToRepr(const Value& value);
// As json.dumps with ensure_ascii=False; `indent` under 0: one line. INVALID_ARGUMENT for functions, undefined values
// and texts over kMaxTextBytes.
absl::StatusOr<std::string> ToJson(const Value& value, int indent);
// "string", "list" and so on, for errors.
std::string TypeName(const Value& value);

}  // namespace tandem::jinja
