#include "router/http/openai_format.h"

#include <boost/json/serialize.hpp>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_replace.h"

namespace tandem {
namespace {

namespace json = boost::json;

constexpr char kAnyJsonObject[] = R"({"type":"object"})";

std::shared_ptr<const OutputFormat> MakeFormat(OutputFormat::Kind kind, std::string text) {
  return std::make_shared<const OutputFormat>(OutputFormat{kind, std::move(text)});
}

// Strings that may be chosen from, as a grammar. JSON's escapes are those of Lark's strings, which have one more.
std::string ChoiceGrammar(const json::array& choices) {
  std::string grammar = "start: ";
  for (size_t i = 0; i < choices.size(); ++i)
    absl::StrAppend(&grammar, i > 0 ? " | " : "", json::serialize(choices[i]));
  return absl::StrReplaceAll(grammar, {{"\x7F", "\\u007f"}});
}

void GetResponseFormat(Fields& fields, SamplingParams& sampling) {
  const json::value* value = fields.Find("response_format");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.Keep(WrongType("response_format", "an object", *value));
  Fields format(value->get_object(), "response_format.");
  std::string type;
  format.Get("type", type);
  fields.Keep(format.status());
  if (type == "text") return;
  if (type == "json_object") {
    sampling.format = MakeFormat(OutputFormat::Kind::kJsonSchema, kAnyJsonObject);
    return;
  }
  if (type != "json_schema") {
    return fields.Refuse("response_format",
                         absl::StrCat("type must be text, json_object or json_schema, got \"", type, "\""));
  }
  const json::value* named = format.Find("json_schema");
  if (named == nullptr) return fields.Refuse("response_format", "json_schema is missing");
  if (!named->is_object()) return fields.Keep(WrongType("response_format.json_schema", "an object", *named));
  const json::value* schema = Fields(named->get_object()).Find("schema");
  if (schema == nullptr) return fields.Refuse("response_format", "json_schema.schema is missing");
  if (!schema->is_object()) return fields.Keep(WrongType("response_format.json_schema.schema", "an object", *schema));
  sampling.format = MakeFormat(OutputFormat::Kind::kJsonSchema, json::serialize(*schema));
}

void GetStructuredOutputs(Fields& fields, SamplingParams& sampling) {
  const json::value* value = fields.Find("structured_outputs");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.Keep(WrongType("structured_outputs", "an object", *value));
  if (sampling.format != nullptr) return fields.Refuse("structured_outputs", "there is a response_format already");
  Fields outputs(value->get_object(), "structured_outputs.");
  int num_formats = 0;
  const auto set = [&](OutputFormat::Kind kind, std::string text) {
    sampling.format = MakeFormat(kind, std::move(text));
    ++num_formats;
  };
  if (const json::value* schema = outputs.Find("json"); schema != nullptr) {
    set(OutputFormat::Kind::kJsonSchema,
        schema->is_string() ? std::string(View(schema->get_string())) : json::serialize(*schema));
  }
  bool any_object = false;
  outputs.Get("json_object", any_object);
  if (any_object) set(OutputFormat::Kind::kJsonSchema, kAnyJsonObject);
  std::string text;
  outputs.Get("regex", text);
  if (!text.empty()) set(OutputFormat::Kind::kRegex, std::exchange(text, ""));
  outputs.Get("grammar", text);
  if (!text.empty()) set(OutputFormat::Kind::kLark, std::exchange(text, ""));
  if (const json::value* choices = outputs.Find("choice"); choices != nullptr) {
    if (!choices->is_array() || choices->get_array().empty()) {
      return fields.Keep(WrongType("structured_outputs.choice", "an array of strings", *choices));
    }
    for (const json::value& choice : choices->get_array()) {
      if (!choice.is_string() || choice.get_string().empty()) {
        return fields.Keep(WrongType("structured_outputs.choice", "an array of strings", choice));
      }
    }
    set(OutputFormat::Kind::kLark, ChoiceGrammar(choices->get_array()));
  }
  fields.Keep(outputs.status());
  for (const char* name : {"whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"}) {
    const json::value* value = outputs.Find(name);
    if (value != nullptr && *value != false)
      fields.Keep(absl::InvalidArgumentError(absl::StrCat("structured_outputs.", name, ": is not supported")));
  }
  if (num_formats != 1) {
    fields.Refuse("structured_outputs", "set one of json, json_object, regex, choice and grammar");
  }
}

}  // namespace

void GetOutputFormat(Fields& fields, SamplingParams& sampling) {
  GetResponseFormat(fields, sampling);
  GetStructuredOutputs(fields, sampling);
  for (const char* name : {"guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar",
                           "guided_whitespace_pattern"}) {
    if (fields.Find(name) != nullptr) fields.Refuse(name, "is not supported: send structured_outputs");
  }
}

}  // namespace tandem
