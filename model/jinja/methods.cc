#include <algorithm>
#include <functional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "model/jinja/builtins.h"
#include "model/jinja/limits.h"
#include "model/jinja/text_functions.h"
#include "model/utf8.h"

namespace tandem::jinja {

namespace {

// Takes the first character off; a byte that is none stands for itself.
absl::string_view TakeCharacter(absl::string_view& text) {
  absl::string_view first = text.substr(0, std::max(1, Utf8Length(text)));
  text.remove_prefix(first.size());
  return first;
}

}  // namespace

int64_t CharacterCount(absl::string_view text) {
  int64_t count = 0;
  for (; !text.empty(); ++count) TakeCharacter(text);
  return count;
}

std::string Strip(absl::string_view text, const Value* characters, bool left, bool right) {
  std::string set =
      characters != nullptr && characters->AsString() != nullptr ? *characters->AsString() : " \t\n\r\v\f";
  size_t begin = left ? text.find_first_not_of(set) : 0;
  if (begin == absl::string_view::npos) return "";
  size_t end = right ? text.find_last_not_of(set) : text.size() - 1;
  return std::string(text.substr(begin, end - begin + 1));
}

std::string Capitalize(absl::string_view text) {
  std::string out = absl::AsciiStrToLower(text);
  if (!out.empty()) out[0] = absl::ascii_toupper(out[0]);
  return out;
}

std::string Title(absl::string_view text) {
  std::string out = absl::AsciiStrToLower(text);
  bool begin = true;
  for (char& c : out) {
    if (begin) c = absl::ascii_toupper(c);
    begin = !absl::ascii_isalnum(c);
  }
  return out;
}

absl::StatusOr<Value> ReplaceText(const std::string& text, const Value* from, const Value* to, const Value* count) {
  if (from == nullptr || to == nullptr || ToText(*from).empty()) return Value(text);
  std::string pattern = ToText(*from), with = ToText(*to), out;
  int64_t left = count != nullptr && count->As<int64_t>() != nullptr && *count->As<int64_t>() >= 0
                     ? *count->As<int64_t>()
                     : INT64_MAX;
  size_t done = 0;
  for (size_t at; left > 0 && (at = text.find(pattern, done)) != std::string::npos; --left) {
    out.append(text, done, at - done).append(with);
    done = at + pattern.size();
    if (out.size() > kMaxTextBytes) return TextTooLong();
  }
  return Value(out.append(text, done, std::string::npos));
}

Value Items(const Dict& dict) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict.items) {
    Value pair = MakeList({key, value});
    pair.AsList()->is_tuple = true;
    pairs.push_back(std::move(pair));
  }
  return MakeList(std::move(pairs));
}

Value Keys(const Dict& dict, bool values) {
  std::vector<Value> out;
  for (const auto& [key, value] : dict.items) out.push_back(values ? value : key);
  return MakeList(std::move(out));
}

namespace {

// How often `part` stands in `text`, one after the other.
int64_t CountParts(absl::string_view text, absl::string_view part) {
  int64_t count = 0;
  for (size_t at = 0; !part.empty() && (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

absl::StatusOr<Value> Split(const std::string& text, const Arguments& arguments, bool from_right) {
  const Value* separator = arguments.Get(0, "sep");
  const Value* limit_value = arguments.Get(1, "maxsplit");
  int64_t limit = limit_value != nullptr && limit_value->As<int64_t>() != nullptr ? *limit_value->As<int64_t>() : -1;
  std::vector<Value> parts;
  if (separator == nullptr || separator->IsNone()) {
    for (absl::string_view part : absl::StrSplit(text, absl::ByAnyChar(" \t\n\r\v\f"), absl::SkipEmpty())) {
      parts.emplace_back(part);
      if (parts.size() > kMaxItems) return ListTooLong();
    }
    return MakeList(std::move(parts));
  }
  std::string by = ToText(*separator);
  if (CountParts(text, by) >= static_cast<int64_t>(kMaxItems)) return ListTooLong();
  std::vector<std::string> pieces =
      by.empty() ? std::vector<std::string>{text} : std::vector<std::string>(absl::StrSplit(text, by));
  if (limit >= 0 && pieces.size() > limit + 1) {
    size_t keep = static_cast<size_t>(limit);
    if (from_right) {
      std::string joined = absl::StrJoin(pieces.begin(), pieces.end() - keep, by);
      pieces.erase(pieces.begin(), pieces.end() - keep);
      pieces.insert(pieces.begin(), joined);
    } else {
      std::string joined = absl::StrJoin(pieces.begin() + keep, pieces.end(), by);
      pieces.resize(keep);
      pieces.push_back(joined);
    }
  }
  for (std::string& piece : pieces) parts.emplace_back(std::move(piece));
  return MakeList(std::move(parts));
}

// startswith and endswith take a text or a tuple of texts.
bool MatchesAny(const Value* affixes, const std::function<bool(absl::string_view)>& matches) {
  if (affixes == nullptr) return false;
  if (const List* list = affixes->AsList()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& item) { return matches(ToText(item)); });
  }
  return matches(ToText(*affixes));
}

using StringMethod = std::function<absl::StatusOr<Value>(const std::string& text, const Arguments& arguments)>;

const absl::flat_hash_map<std::string, StringMethod>& StringMethods() {
  static const auto* const methods = new absl::flat_hash_map<std::string, StringMethod>{
      {"strip",
       [](const std::string& t, const Arguments& a) { return Value(Strip(t, a.Get(0, "chars"), true, true)); }},
      {"lstrip",
       [](const std::string& t, const Arguments& a) { return Value(Strip(t, a.Get(0, "chars"), true, false)); }},
      {"rstrip",
       [](const std::string& t, const Arguments& a) { return Value(Strip(t, a.Get(0, "chars"), false, true)); }},
      {"upper", [](const std::string& t, const Arguments&) { return Value(absl::AsciiStrToUpper(t)); }},
      {"lower", [](const std::string& t, const Arguments&) { return Value(absl::AsciiStrToLower(t)); }},
      {"title", [](const std::string& t, const Arguments&) { return Value(Title(t)); }},
      {"capitalize", [](const std::string& t, const Arguments&) { return Value(Capitalize(t)); }},
      {"split", [](const std::string& t, const Arguments& a) { return Split(t, a, false); }},
      {"rsplit", [](const std::string& t, const Arguments& a) { return Split(t, a, true); }},
      {"splitlines",
       [](const std::string& t, const Arguments&) -> absl::StatusOr<Value> {
         if (CountParts(t, "\n") >= static_cast<int64_t>(kMaxItems)) return ListTooLong();
         std::vector<Value> lines;
         for (absl::string_view line : absl::StrSplit(t, '\n')) lines.emplace_back(line);
         if (!lines.empty() && lines.back().AsString()->empty()) lines.pop_back();
         return MakeList(std::move(lines));
       }},
      {"replace",
       [](const std::string& t, const Arguments& a) {
         return ReplaceText(t, a.Get(0, "old"), a.Get(1, "new"), a.Get(2, "count"));
       }},
      {"startswith",
       [](const std::string& t, const Arguments& a) {
         return Value(MatchesAny(a.Get(0, "prefix"), [&](absl::string_view p) { return absl::StartsWith(t, p); }));
       }},
      {"endswith",
       [](const std::string& t, const Arguments& a) {
         return Value(MatchesAny(a.Get(0, "suffix"), [&](absl::string_view p) { return absl::EndsWith(t, p); }));
       }},
      {"find",
       [](const std::string& t, const Arguments& a) {
         size_t at = a.Get(0, "sub") == nullptr ? std::string::npos : t.find(ToText(*a.Get(0, "sub")));
         return Value(at == std::string::npos ? int64_t{-1} : CharacterCount(absl::string_view(t).substr(0, at)));
       }},
      {"count",
       [](const std::string& t, const Arguments& a) {
         return Value(CountParts(t, a.Get(0, "sub") == nullptr ? "" : ToText(*a.Get(0, "sub"))));
       }},
      {"isdigit",
       [](const std::string& t, const Arguments&) {
         return Value(!t.empty() && std::all_of(t.begin(), t.end(), absl::ascii_isdigit));
       }},
      {"isspace",
       [](const std::string& t, const Arguments&) {
         return Value(!t.empty() && std::all_of(t.begin(), t.end(), absl::ascii_isspace));
       }},
  };
  return *methods;
}

Value FindDictMethod(const Value& object, absl::string_view name) {
  if (name == "items") {
    return MakeCallable([object](const Arguments&) -> absl::StatusOr<Value> { return Items(*object.AsDict()); });
  }
  if (name == "keys" || name == "values") {
    return MakeCallable([object, values = name == "values"](const Arguments&) -> absl::StatusOr<Value> {
      return Keys(*object.AsDict(), values);
    });
  }
  if (name == "get") {
    return MakeCallable([object](const Arguments& arguments) -> absl::StatusOr<Value> {
      const Value* key = arguments.Get(0, "key");
      const Value* fallback = arguments.Get(1, "default");
      const Value* found = key == nullptr ? nullptr : object.AsDict()->Find(*key);
      return found != nullptr ? *found : fallback != nullptr ? *fallback : Value(None());
    });
  }
  return Value();
}

}  // namespace

absl::StatusOr<std::vector<Value>> Iterate(const Value& value) {
  if (const List* list = value.AsList()) return list->items;
  if (const Dict* dict = value.AsDict()) return Keys(*dict, false).AsList()->items;
  if (value.IsUndefined()) return std::vector<Value>();
  if (const std::string* text = value.AsString()) {
    std::vector<Value> out;
    for (absl::string_view left = *text; !left.empty();) {
      out.emplace_back(TakeCharacter(left));
      if (out.size() > kMaxItems) return ListTooLong();
    }
    return out;
  }
  return absl::InvalidArgumentError(absl::StrCat(TypeName(value), " cannot be iterated"));
}

Value GetItem(const Value& object, const Value& key) {
  if (const Dict* dict = object.AsDict()) {
    const Value* found = dict->Find(key);
    return found != nullptr ? *found : Value();
  }
  const int64_t* index = key.As<int64_t>();
  if (index == nullptr) return Value();
  auto position = [&](size_t size) { return *index < 0 ? *index + static_cast<int64_t>(size) : *index; };
  if (const List* list = object.AsList()) {
    int64_t at = position(list->items.size());
    return at >= 0 && at < static_cast<int64_t>(list->items.size()) ? list->items[at] : Value();
  }
  if (const std::string* text = object.AsString()) {
    absl::string_view left = *text;
    for (int64_t at = *index < 0 ? position(CharacterCount(left)) : *index; at >= 0 && !left.empty(); --at) {
      absl::string_view character = TakeCharacter(left);
      if (at == 0) return Value(character);
    }
  }
  return Value();
}

Value FindMethod(const Value& object, absl::string_view name) {
  if (object.AsString() != nullptr) {
    auto method = StringMethods().find(name);
    if (method == StringMethods().end()) return Value();
    return MakeCallable([object, call = method->second](const Arguments& arguments) -> absl::StatusOr<Value> {
      return call(*object.AsString(), arguments);
    });
  }
  if (object.AsDict() != nullptr) {
    Value method = FindDictMethod(object, name);
    if (const auto* callable = method.As<std::shared_ptr<Callable>>()) {
      (*callable)->holds_namespace = HoldsNamespace(object);
    }
    return method;
  }
  return Value();
}

Value GetAttribute(const Value& object, absl::string_view name) {
  if (object.AsDict() != nullptr) {
    if (Value item = GetItem(object, Value(name)); !item.IsUndefined()) return item;
  }
  return FindMethod(object, name);
}

}  // namespace tandem::jinja
