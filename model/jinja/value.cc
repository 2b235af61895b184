#include "model/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/jinja/limits.h"

namespace tandem::jinja {
namespace {

std::string FloatText(double value) {
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (std::isnan(value)) return "nan";
  // As Python: the fewest digits that read back equal, with an exponent only for very small and
  // large numbers.
  int precision = 0;
  for (double back = 0; precision < 17; ++precision) {
    if (absl::SimpleAtod(absl::StrFormat("%.*e", precision, value), &back) && back == value) break;
  }
  const int exponent = value == 0 ? 0 : static_cast<int>(std::floor(std::log10(std::fabs(value))));
  if (exponent < -4 || exponent >= 16) return absl::StrFormat("%.*g", precision + 1, value);
  return absl::StrFormat("%.*f", std::max(1, precision - exponent), value);
}

std::string Quote(absl::string_view text) {
  const char quote = absl::StrContains(text, '\'') && !absl::StrContains(text, '"') ? '"' : '\'';
  std::string out(1, quote);
  for (char c : text) {
    switch (c) {
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\\':
        out += "\\\\";
        break;
      default:
        if (c == quote) out += '\\';
        out += c;
    }
  }
  return out + quote;
}

void AppendRepr(const Value& value, std::string& out) {
  if (out.size() > kMaxTextBytes) return;  // Shared parts may repeat without end.
  if (const std::string* text = value.AsString()) {
    out += Quote(*text);
  } else if (const List* list = value.AsList()) {
    out += list->is_tuple ? '(' : '[';
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += ", ";
      AppendRepr(list->items[i], out);
    }
    if (list->is_tuple && list->items.size() == 1) out += ',';
    out += list->is_tuple ? ')' : ']';
  } else if (const Dict* dict = value.AsDict()) {
    out += '{';
    for (size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out += ", ";
      AppendRepr(dict->items[i].first, out);
      out += ": ";
      AppendRepr(dict->items[i].second, out);
    }
    out += '}';
  } else {
    out += ToText(value);
  }
}

std::string JsonString(absl::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppend(&out, absl::StrFormat("\\u%04x", c));
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

void NewLine(int indent, int depth, std::string& out) {
  if (indent >= 0) absl::StrAppend(&out, "\n", std::string(indent * depth, ' '));
}

absl::Status AppendJson(const Value& value, int indent, int depth, std::string& out) {
  if (out.size() > kMaxTextBytes) return TextTooLong();
  const char* separator = indent < 0 ? ", " : ",";
  if (value.IsNone()) {
    out += "null";
  } else if (const bool* flag = value.As<bool>()) {
    out += *flag ? "true" : "false";
  } else if (value.IsNumber()) {
    out += ToText(value);
  } else if (const std::string* text = value.AsString()) {
    out += JsonString(*text);
  } else if (const List* list = value.AsList()) {
    out += '[';
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += separator;
      NewLine(indent, depth + 1, out);
      RETURN_IF_ERROR(AppendJson(list->items[i], indent, depth + 1, out));
    }
    if (!list->items.empty()) NewLine(indent, depth, out);
    out += ']';
  } else if (const Dict* dict = value.AsDict()) {
    out += '{';
    for (size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out += separator;
      NewLine(indent, depth + 1, out);
      absl::StrAppend(&out, JsonString(ToText(dict->items[i].first)), ": ");
      RETURN_IF_ERROR(AppendJson(dict->items[i].second, indent, depth + 1, out));
    }
    if (!dict->items.empty()) NewLine(indent, depth, out);
    out += '}';
  } else {
    return absl::InvalidArgumentError(absl::StrCat("tojson: cannot write ", TypeName(value)));
  }
  return absl::OkStatus();
}

// `steps` are those that are left.
bool EqualWithin(const Value& a, const Value& b, int64_t& steps) {
  if (--steps < 0) return false;
  if (a.IsNumber() && b.IsNumber()) return a.ToDouble() == b.ToDouble();
  if (a.data.index() != b.data.index()) return false;
  if (const std::string* text = a.AsString()) return *text == *b.AsString();
  if (a.IsNone() || a.IsUndefined()) return true;
  if (const List* list = a.AsList()) {
    const List* other = b.AsList();
    if (list == other) return true;
    if (list->items.size() != other->items.size()) return false;
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (!EqualWithin(list->items[i], other->items[i], steps)) return false;
    }
    return true;
  }
  if (const Dict* dict = a.AsDict()) {
    const Dict* other = b.AsDict();
    if (dict == other) return true;
    if (dict->items.size() != other->items.size()) return false;
    for (const auto& item_of_a : dict->items) {
      auto match = std::find_if(other->items.begin(), other->items.end(),
                                [&](const auto& item) { return EqualWithin(item.first, item_of_a.first, steps); });
      if (match == other->items.end() || !EqualWithin(item_of_a.second, match->second, steps)) return false;
    }
    return true;
  }
  return *a.As<std::shared_ptr<Callable>>() == *b.As<std::shared_ptr<Callable>>();
}

}  // namespace

List* Value::AsList() const {
  const auto* list = As<std::shared_ptr<List>>();
  return list == nullptr ? nullptr : list->get();
}

Dict* Value::AsDict() const {
  const auto* dict = As<std::shared_ptr<Dict>>();
  return dict == nullptr ? nullptr : dict->get();
}

double Value::ToDouble() const {
  if (const bool* flag = As<bool>()) return *flag ? 1 : 0;
  if (const int64_t* number = As<int64_t>()) return static_cast<double>(*number);
  const double* number = As<double>();
  return number == nullptr ? 0 : *number;
}

int64_t Value::ToWhole() const {
  if (const int64_t* number = As<int64_t>()) return *number;
  const double value = ToDouble();
  if (std::isnan(value)) return 0;
  // 2^63 itself is one too many.
  if (value >= 0x1p63) return INT64_MAX;
  return value < -0x1p63 ? INT64_MIN : static_cast<int64_t>(value);
}

bool Value::Truthy() const {
  if (IsUndefined() || IsNone()) return false;
  if (IsNumber()) return ToDouble() != 0;
  if (const std::string* text = AsString()) return !text->empty();
  if (const List* list = AsList()) return !list->items.empty();
  if (const Dict* dict = AsDict()) return dict->is_namespace || !dict->items.empty();
  return true;
}

const Value* Dict::Find(const Value& key) const {
  for (const auto& [own, value] : items) {
    if (Equal(own, key)) return &value;
  }
  return nullptr;
}

void Dict::Set(const Value& key, Value value) {
  for (auto& [own, old] : items) {
    if (Equal(own, key)) {
      nesting.Add(value);
      old = std::move(value);
      return;
    }
  }
  nesting.Add(key);
  nesting.Add(value);
  items.emplace_back(key, std::move(value));
}

void Nesting::Add(const Value& item) {
  depth = std::max(depth, NestingDepth(item) + 1);
  holds_namespace |= HoldsNamespace(item);
}

int NestingDepth(const Value& value) {
  if (const List* list = value.AsList()) return list->nesting.depth;
  if (const Dict* dict = value.AsDict()) return dict->nesting.depth;
  return 0;
}

bool HoldsNamespace(const Value& value) {
  if (const List* list = value.AsList()) return list->nesting.holds_namespace;
  if (const Dict* dict = value.AsDict()) return dict->is_namespace || dict->nesting.holds_namespace;
  const auto* callable = value.As<std::shared_ptr<Callable>>();
  return callable != nullptr && (*callable)->holds_namespace;
}

const Value* Arguments::Get(size_t position, absl::string_view name) const {
  for (const auto& [own, value] : named) {
    if (own == name) return &value;
  }
  return position < positional.size() ? &positional[position] : nullptr;
}

Value MakeList(std::vector<Value> items) {
  auto list = std::make_shared<List>();
  list->items = std::move(items);
  for (const Value& item : list->items) list->nesting.Add(item);
  return Value(std::move(list));
}

Value MakeDict(std::vector<std::pair<Value, Value>> items) {
  auto dict = std::make_shared<Dict>();
  dict->items = std::move(items);
  for (const auto& [key, value] : dict->items) {
    dict->nesting.Add(key);
    dict->nesting.Add(value);
  }
  return Value(std::move(dict));
}

Value MakeCallable(std::function<absl::StatusOr<Value>(const Arguments&)> call) {
  auto callable = std::make_shared<Callable>();
  callable->call = std::move(call);
  return Value(std::move(callable));
}

bool Equal(const Value& a, const Value& b) {
  int64_t steps = kMaxSteps;
  return EqualWithin(a, b, steps);
}

absl::StatusOr<int> Compare(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    return a.ToDouble() < b.ToDouble() ? -1 : a.ToDouble() > b.ToDouble() ? 1 : 0;
  }
  if (a.AsString() != nullptr && b.AsString() != nullptr) {
    int order = a.AsString()->compare(*b.AsString());
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  return absl::InvalidArgumentError(absl::StrCat("cannot compare ", TypeName(a), " with ", TypeName(b)));
}

std::string ToText(const Value& value) {
  if (value.IsUndefined()) return "";
  if (value.IsNone()) return "None";
  if (const bool* flag = value.As<bool>()) return *flag ? "True" : "False";
  if (const int64_t* number = value.As<int64_t>()) return absl::StrCat(*number);
  if (const double* number = value.As<double>()) return FloatText(*number);
  if (const std::string* text = value.AsString()) return *text;
  if (value.As<std::shared_ptr<Callable>>() != nullptr) return "<function>";
  return ToRepr(value);
}

std::string ToRepr(const Value& value) {
  std::string out;
  AppendRepr(value, out);
  return out;
}

absl::StatusOr<std::string> ToJson(const Value& value, int indent) {
  std::string out;
  RETURN_IF_ERROR(AppendJson(value, indent, 0, out));
  return out;
}

std::string TypeName(const Value& value) {
  if (value.IsUndefined()) return "undefined";
  if (value.IsNone()) return "None";
  if (value.As<bool>() != nullptr) return "bool";
  if (value.As<int64_t>() != nullptr) return "int";
  if (value.As<double>() != nullptr) return "float";
  if (value.AsString() != nullptr) return "str";
  if (value.AsList() != nullptr) return "list";
  if (value.AsDict() != nullptr) return "dict";
  return "function";
}

}  // namespace tandem::jinja
