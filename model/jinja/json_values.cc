#include "model/jinja/json_values.h"

#include <boost/json/parse.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/jinja/limits.h"

namespace tandem::jinja {
namespace {

namespace json = boost::json;

std::string Text(const json::string& text) { return {text.data(), text.size()}; }

// The parser bounds the depth.
class Converter {
 public:
  Value Convert(const json::value& value) {  // NOLINT(misc-no-recursion)
    if (++items_ > kMaxItems) return None();
    switch (value.kind()) {
      case json::kind::null:
        return None();
      case json::kind::bool_:
        return value.get_bool();
      case json::kind::int64:
        return value.get_int64();
      case json::kind::uint64:
        return static_cast<double>(value.get_uint64());
      case json::kind::double_:
        return value.get_double();
      case json::kind::string:
        return Text(value.get_string());
      case json::kind::array: {
        std::vector<Value> items;
        for (const json::value& item : value.get_array()) items.push_back(Convert(item));
        return MakeList(std::move(items));
      }
      case json::kind::object: {
        std::vector<std::pair<Value, Value>> items;
        for (const auto& [key, item] : value.get_object()) {
          items.emplace_back(std::string(key.data(), key.size()), Convert(item));
        }
        return MakeDict(std::move(items));
      }
    }
    return None();
  }
  bool is_too_long() const { return items_ > kMaxItems; }

 private:
  size_t items_ = 0;
};

}  // namespace

absl::StatusOr<Value> FromJson(absl::string_view text) {
  if (text.size() > kMaxTextBytes) return TextTooLong();
  json::error_code error;
  const json::value value = json::parse({text.data(), text.size()}, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("no valid JSON: ", error.message()));
  Converter converter;
  Value converted = converter.Convert(value);
  if (converter.is_too_long()) return ListTooLong();
  return converted;
}

}  // namespace tandem::jinja
