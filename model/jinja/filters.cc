#include <algorithm>
#include <cmath>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/limits.h"
#include "model/jinja/text_functions.h"

namespace tandem::jinja {
namespace {

absl::Status TypeError(absl::string_view what, const Value& value) {
  return absl::InvalidArgumentError(absl::StrCat(what, " does not work on ", TypeName(value)));
}

// attribute="a.b", as map, sort and the select filters take it.
Value GetPath(const Value& object, const std::string& path) {
  Value value = object;
  for (absl::string_view part : absl::StrSplit(path, '.')) {
    int64_t index = 0;
    value = absl::SimpleAtoi(part, &index) ? GetItem(value, Value(index)) : GetAttribute(value, part);
  }
  return value;
}

absl::StatusOr<std::vector<Value>> SortValues(std::vector<Value> values, const std::string& attribute, bool reverse,
                                              bool case_sensitive) {
  absl::Status failure;
  auto key = [&](const Value& value) {
    Value found = attribute.empty() ? value : GetPath(value, attribute);
    if (!case_sensitive && found.AsString() != nullptr) return Value(absl::AsciiStrToLower(*found.AsString()));
    return found;
  };
  std::stable_sort(values.begin(), values.end(), [&](const Value& a, const Value& b) {
    absl::StatusOr<int> order = Compare(key(a), key(b));
    if (!order.ok()) failure = order.status();
    return order.value_or(0) * (reverse ? -1 : 1) < 0;
  });
  if (!failure.ok()) return failure;
  return values;
}

absl::StatusOr<Value> SelectOrReject(const Value& input, const Arguments& arguments, bool by_attribute, bool keep) {
  ASSIGN_OR_RETURN(std::vector<Value> values, Iterate(input));
  const size_t first = by_attribute ? 1 : 0;
  if (by_attribute && arguments.positional.empty()) return absl::InvalidArgumentError("selectattr needs an attribute");
  std::string path = by_attribute ? ToText(arguments.positional[0]) : "";
  Arguments rest;
  if (arguments.positional.size() > first + 1) {
    rest.positional.assign(arguments.positional.begin() + first + 1, arguments.positional.end());
  }
  std::vector<Value> out;
  for (Value& value : values) {
    Value tested = by_attribute ? GetPath(value, path) : value;
    bool passes = tested.Truthy();
    if (arguments.positional.size() > first) {
      ASSIGN_OR_RETURN(passes, ApplyTest(ToText(arguments.positional[first]), tested, rest));
    }
    if (passes == keep) out.push_back(std::move(value));
  }
  return MakeList(std::move(out));
}

absl::StatusOr<Value> MapFilter(const Value& input, const Arguments& arguments) {
  ASSIGN_OR_RETURN(std::vector<Value> values, Iterate(input));
  for (Value& value : values) {
    bool by_attribute = false;
    for (const auto& [name, path] : arguments.named) {
      if (name == "attribute") {
        value = GetPath(value, ToText(path));
        by_attribute = true;
      } else if (name == "default" && value.IsUndefined()) {
        value = path;
      }
    }
    if (by_attribute) continue;
    if (arguments.positional.empty()) return absl::InvalidArgumentError("map needs a filter or attribute");
    Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
    ASSIGN_OR_RETURN(value, ApplyFilter(ToText(arguments.positional[0]), value, rest));
  }
  return MakeList(std::move(values));
}

absl::StatusOr<Value> ToIntValue(const Value& input, const Arguments& arguments) {
  const Value* fallback = arguments.Get(0, "default");
  if (input.IsNumber()) return Value(input.ToWhole());
  int64_t number = 0;
  double real = 0;
  if (input.AsString() != nullptr && absl::SimpleAtoi(*input.AsString(), &number)) return Value(number);
  if (input.AsString() != nullptr && absl::SimpleAtod(*input.AsString(), &real)) return Value(Value(real).ToWhole());
  return fallback != nullptr ? *fallback : Value(0);
}

absl::StatusOr<Value> Indent(const std::string& text, const Arguments& arguments) {
  const Value* width = arguments.Get(0, "width");
  const Value* first = arguments.Get(1, "first");
  const Value* blank = arguments.Get(2, "blank");
  std::string pad = width == nullptr               ? "    "
                    : width->AsString() != nullptr ? *width->AsString()
                                                   : std::string(std::clamp<int64_t>(width->ToWhole(), 0, 1000), ' ');
  std::string out;
  bool is_first = true;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!is_first) out += '\n';
    bool wanted =
        is_first ? first != nullptr && first->Truthy() : !line.empty() || (blank != nullptr && blank->Truthy());
    absl::StrAppend(&out, wanted ? pad : "", line);
    is_first = false;
    if (out.size() > kMaxTextBytes) return TextTooLong();
  }
  return Value(std::move(out));
}

absl::StatusOr<Value> SumFilter(const std::vector<Value>& values) {
  double sum = 0;
  bool whole = true;
  for (const Value& value : values) {
    if (!value.IsNumber()) return TypeError("sum", value);
    sum += value.ToDouble();
    whole &= value.As<double>() == nullptr;
  }
  return whole ? Value(Value(sum).ToWhole()) : Value(sum);
}

// Filters of sequences.
absl::StatusOr<Value> ApplySequenceFilter(absl::string_view name, const Value& input, const Arguments& arguments) {
  auto flag = [&](size_t position, absl::string_view key) {
    const Value* value = arguments.Get(position, key);
    return value != nullptr && value->Truthy();
  };
  if (name == "map") return MapFilter(input, arguments);
  if (name == "select") return SelectOrReject(input, arguments, false, true);
  if (name == "reject") return SelectOrReject(input, arguments, false, false);
  if (name == "selectattr") return SelectOrReject(input, arguments, true, true);
  if (name == "rejectattr") return SelectOrReject(input, arguments, true, false);
  if (name == "dictsort") {
    if (input.AsDict() == nullptr) return TypeError("dictsort", input);
    ASSIGN_OR_RETURN(std::vector<Value> sorted, SortValues(Items(*input.AsDict()).AsList()->items, "0", false, false));
    return MakeList(std::move(sorted));
  }
  ASSIGN_OR_RETURN(std::vector<Value> values, Iterate(input));
  if (name == "list") return MakeList(std::move(values));
  if (name == "sum") return SumFilter(values);
  if (name == "first" || name == "last") {
    if (values.empty()) return Value();
    return name == "first" ? values.front() : values.back();
  }
  if (name == "join") {
    const Value* separator = arguments.Get(0, "d");
    const Value* attribute = arguments.Get(1, "attribute");
    const std::string between = separator == nullptr ? "" : ToText(*separator);
    std::string text;
    for (size_t i = 0; i < values.size(); ++i) {
      absl::StrAppend(&text, i == 0 ? "" : between,
                      ToText(attribute == nullptr ? values[i] : GetPath(values[i], ToText(*attribute))));
      if (text.size() > kMaxTextBytes) return TextTooLong();
    }
    return Value(std::move(text));
  }
  if (name == "reverse") {
    std::reverse(values.begin(), values.end());
    if (input.AsString() == nullptr) return MakeList(std::move(values));
    std::string text;
    for (const Value& value : values) text += ToText(value);
    return Value(std::move(text));
  }
  if (name == "unique") {
    std::vector<Value> out;
    for (Value& value : values) {
      if (std::none_of(out.begin(), out.end(), [&](const Value& seen) { return Equal(seen, value); }))
        out.push_back(std::move(value));
    }
    return MakeList(std::move(out));
  }
  const Value* attribute = arguments.Get(2, "attribute");
  std::string path = attribute == nullptr ? "" : ToText(*attribute);
  if (name == "sort") {
    ASSIGN_OR_RETURN(values, SortValues(std::move(values), path, flag(0, "reverse"), flag(1, "case_sensitive")));
    return MakeList(std::move(values));
  }
  if (name == "min" || name == "max") {
    if (values.empty()) return Value();
    ASSIGN_OR_RETURN(values, SortValues(std::move(values), path, false, false));
    return name == "min" ? values.front() : values.back();
  }
  return absl::InvalidArgumentError(absl::StrCat("filter \"", name, "\" is not in the subset"));
}

}  // namespace

absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input, const Arguments& arguments) {
  if (name == "default" || name == "d") {
    const Value* fallback = arguments.Get(0, "default_value");
    const Value* boolean = arguments.Get(1, "boolean");
    bool missing = input.IsUndefined() || (boolean != nullptr && boolean->Truthy() && !input.Truthy());
    return missing ? (fallback != nullptr ? *fallback : Value("")) : input;
  }
  if (name == "length" || name == "count") {
    if (input.AsDict() == nullptr && input.AsList() == nullptr && input.AsString() == nullptr && !input.IsUndefined()) {
      return TypeError("length", input);
    }
    if (input.AsString() != nullptr) return Value(CharacterCount(*input.AsString()));
    ASSIGN_OR_RETURN(std::vector<Value> values, Iterate(input));
    return Value(static_cast<int64_t>(values.size()));
  }
  if (name == "string") return Value(ToText(input));
  if (name == "safe") return input;
  if (name == "trim") return Value(Strip(ToText(input), arguments.Get(0, "chars"), true, true));
  if (name == "upper") return Value(absl::AsciiStrToUpper(ToText(input)));
  if (name == "lower") return Value(absl::AsciiStrToLower(ToText(input)));
  if (name == "title") return Value(Title(ToText(input)));
  if (name == "capitalize") return Value(Capitalize(ToText(input)));
  if (name == "replace") {
    return ReplaceText(ToText(input), arguments.Get(0, "old"), arguments.Get(1, "new"), arguments.Get(2, "count"));
  }
  if (name == "indent") return Indent(ToText(input), arguments);
  if (name == "tojson") {
    const Value* indent = arguments.Get(0, "indent");
    ASSIGN_OR_RETURN(std::string text, ToJson(input, indent != nullptr && indent->IsNumber()
                                                         ? static_cast<int>(std::clamp(indent->ToDouble(), 0.0, 64.0))
                                                         : -1));
    return Value(std::move(text));
  }
  if (name == "items") {
    if (input.IsUndefined()) return MakeList({});
    if (input.AsDict() == nullptr) return TypeError("items", input);
    return Items(*input.AsDict());
  }
  if (name == "int") return ToIntValue(input, arguments);
  if (name == "float") {
    double number = input.ToDouble();
    if (input.AsString() != nullptr && !absl::SimpleAtod(*input.AsString(), &number)) number = 0;
    return Value(number);
  }
  if (name == "abs") {
    if (!input.IsNumber()) return TypeError("abs", input);
    return input.As<int64_t>() != nullptr ? Value(std::abs(std::max(*input.As<int64_t>(), -INT64_MAX)))
                                          : Value(std::fabs(input.ToDouble()));
  }
  if (name == "round") {
    if (!input.IsNumber()) return TypeError("round", input);
    const Value* precision = arguments.Get(0, "precision");
    double factor = std::pow(10.0, precision == nullptr ? 0 : precision->ToDouble());
    return Value(std::nearbyint(input.ToDouble() * factor) / factor);
  }
  return ApplySequenceFilter(name, input, arguments);
}

absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& input, const Arguments& arguments) {
  const Value* other = arguments.Get(0, "other");
  if (name == "defined") return !input.IsUndefined();
  if (name == "undefined") return input.IsUndefined();
  if (name == "none") return input.IsNone();
  if (name == "string") return input.AsString() != nullptr;
  if (name == "number") return input.IsNumber();
  if (name == "integer") return input.As<int64_t>() != nullptr;
  if (name == "float") return input.As<double>() != nullptr;
  if (name == "boolean") return input.As<bool>() != nullptr;
  if (name == "true") return input.As<bool>() != nullptr && input.Truthy();
  if (name == "false") return input.As<bool>() != nullptr && !input.Truthy();
  if (name == "mapping") return input.AsDict() != nullptr;
  if (name == "sequence" || name == "iterable") {
    return input.AsDict() != nullptr || input.AsList() != nullptr || input.AsString() != nullptr;
  }
  if (name == "callable") return input.As<std::shared_ptr<Callable>>() != nullptr;
  if (name == "lower") return ToText(input) == absl::AsciiStrToLower(ToText(input));
  if (name == "upper") return ToText(input) == absl::AsciiStrToUpper(ToText(input));
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const int64_t* number = input.As<int64_t>();
    if (number == nullptr) return TypeError(name, input);
    int64_t divisor = 2;
    if (name == "divisibleby") {
      if (other == nullptr || other->As<int64_t>() == nullptr || *other->As<int64_t>() == 0) {
        return absl::InvalidArgumentError("divisibleby needs a number that is not 0");
      }
      divisor = *other->As<int64_t>();
    }
    return (divisor == -1 ? 0 : *number % divisor) == 0 ? name != "odd" : name == "odd";
  }
  if (other == nullptr)
    return absl::InvalidArgumentError(absl::StrCat("test \"", name, "\" is not in the subset or lacks its argument"));
  if (name == "equalto" || name == "eq" || name == "sameas") return Equal(input, *other);
  if (name == "ne") return !Equal(input, *other);
  if (name == "in") {
    if (other->AsString() != nullptr) return absl::StrContains(*other->AsString(), ToText(input));
    ASSIGN_OR_RETURN(std::vector<Value> values, Iterate(*other));
    return std::any_of(values.begin(), values.end(), [&](const Value& value) { return Equal(value, input); });
  }
  for (auto [test, low, high] : {std::tuple{"lt", -1, -1},
                                 {"lessthan", -1, -1},
                                 {"le", -1, 0},
                                 {"gt", 1, 1},
                                 {"greaterthan", 1, 1},
                                 {"ge", 0, 1}}) {
    if (name != test) continue;
    ASSIGN_OR_RETURN(int order, Compare(input, *other));
    return order >= low && order <= high;
  }
  return absl::InvalidArgumentError(absl::StrCat("test \"", name, "\" is not in the subset"));
}

}  // namespace tandem::jinja
