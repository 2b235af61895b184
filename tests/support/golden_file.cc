#include "tests/support/golden_file.h"

#include <boost/json.hpp>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

namespace json = boost::json;

std::vector<TokenId> Ids(const json::value& value) {
  std::vector<TokenId> ids;
  for (const json::value& id : value.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
  return ids;
}

GoldenPrompt Parse(const json::object& object) {
  GoldenPrompt prompt;
  prompt.name = std::string(object.at("name").as_string());
  if (const json::value* text = object.if_contains("text"); text != nullptr)
    prompt.text = std::string(text->as_string());
  prompt.ids = Ids(object.at("ids"));
  prompt.continuation = Ids(object.at("cont"));
  for (const json::value& margin : object.at("margin").as_array()) prompt.margin.push_back(margin.to_number<double>());
  for (const json::value& step : object.at("top5").as_array()) {
    auto& entries = prompt.top5.emplace_back();
    for (const json::value& entry : step.as_array()) {
      entries.emplace_back(static_cast<TokenId>(entry.as_array()[0].as_int64()),
                           entry.as_array()[1].to_number<double>());
    }
  }
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<GoldenPrompt>> ReadGoldenFile(const std::string& path) {
  std::ifstream file(SourcePath("tests/golden/" + path));
  if (!file) return absl::NotFoundError(absl::StrCat("tests/golden/", path, " cannot be read"));
  std::vector<GoldenPrompt> prompts;
  std::string line;
  while (std::getline(file, line)) {
    json::error_code error;
    json::value value = json::parse(line, error);
    if (error || !value.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.message()));
    prompts.push_back(Parse(value.as_object()));
  }
  return prompts;
}

std::string SourcePath(const std::string& path) { return absl::StrCat(TANDEM_SOURCE_DIR, "/", path); }

std::string SmolLm2Path() { return SourcePath("build/models/SmolLM2-135M-Instruct.Q4_1.gguf"); }

}  // namespace tandem
