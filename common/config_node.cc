#include "common/config_node.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/units.h"

namespace tandem {

struct ConfigNode::Document {
  std::string name;
  std::vector<std::pair<int, std::string>> errors;  // Line, whole text.
};

struct ConfigNode::Impl {
  // Co-owners: all nodes of one file.
  std::shared_ptr<Document> document;
  YAML::Node node;
  std::string path;  // "pools[0].limits.", the prefix of keys in errors.
  int line = 1;
  std::set<std::string> asked;
  std::vector<std::shared_ptr<Impl>> children;

  std::optional<YAML::Node> Find(absl::string_view key) {
    asked.insert(std::string(key));
    if (!node.IsMap()) return std::nullopt;
    for (const auto& entry : node) {
      if (entry.first.Scalar() == std::string(key)) return entry.second;
    }
    return std::nullopt;
  }
  int LineOf(absl::string_view key) const {
    if (node.IsMap()) {
      for (const auto& entry : node) {
        if (entry.first.Scalar() == std::string(key)) return entry.first.Mark().line + 1;
      }
    }
    return line;
  }
  std::shared_ptr<Impl> Child(const YAML::Node& child, std::string child_path, int fallback_line) {
    auto impl = std::make_shared<Impl>();
    impl->document = document;
    impl->line = child.IsDefined() && child.Mark().line >= 0 ? child.Mark().line + 1 : fallback_line;
    impl->node = child;
    impl->path = std::move(child_path);
    children.push_back(impl);
    return impl;
  }
  void Error(int at_line, absl::string_view key, absl::string_view message) {
    document->errors.emplace_back(at_line, absl::StrCat(document->name, ":", at_line, ": ", path, key, ": ", message));
  }
  void CheckUnknownKeys() {
    if (node.IsMap()) {
      std::set<std::string> seen;
      for (const auto& entry : node) {
        const std::string& key = entry.first.Scalar();
        int key_line = entry.first.Mark().line + 1;
        if (!asked.contains(key)) {
          Error(key_line, key, absl::StrCat("unknown key; known here: ", absl::StrJoin(asked, ", ")));
        }
        if (!seen.insert(key).second) Error(key_line, key, "stands here twice");
      }
    }
    for (auto& child : children) child->CheckUnknownKeys();
  }
};

ConfigNode::ConfigNode(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<ConfigNode> ConfigNode::ParseFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::stringstream text;
  text << file.rdbuf();
  return ParseText(text.str(), path);
}

absl::StatusOr<ConfigNode> ConfigNode::ParseText(const std::string& text, const std::string& name) {
  // yaml-cpp reports by exception, too deep a nesting as well; none leaves this function.
  try {
    YAML::Node root = YAML::Load(text);
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ":1: expected a mapping of settings"));
    }
    auto impl = std::make_shared<Impl>();
    impl->document = std::make_shared<Document>();
    impl->document->name = name;
    impl->node = root;
    return ConfigNode(std::move(impl));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ":", error.mark.line + 1, ": not YAML: ", error.msg));
  }
}

bool ConfigNode::Has(absl::string_view key) const { return impl_->Find(key).has_value(); }

std::string ConfigNode::GetString(absl::string_view key, absl::string_view default_value) {
  std::optional<YAML::Node> value = impl_->Find(key);
  if (!value.has_value()) return std::string(default_value);
  if (!value->IsScalar()) {
    AddError(key, "expected a text");
    return std::string(default_value);
  }
  return value->Scalar();
}

std::string ConfigNode::RequireString(absl::string_view key) {
  if (!impl_->Find(key).has_value()) {
    AddError(key, "is missing");
    return "";
  }
  std::string value = GetString(key, "");
  if (value.empty()) AddError(key, "must not be empty");
  return value;
}

std::string ConfigNode::GetEnum(absl::string_view key, absl::string_view default_value,
                                const std::vector<std::string>& allowed) {
  std::string value = GetString(key, default_value);
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
    AddError(key, absl::StrCat("expected one of ", absl::StrJoin(allowed, ", "), "; got \"", value, "\""));
    return std::string(default_value);
  }
  return value;
}

int64_t ConfigNode::GetInt(absl::string_view key, int64_t default_value, int64_t min, int64_t max) {
  std::optional<YAML::Node> value = impl_->Find(key);
  if (!value.has_value()) return default_value;
  int64_t number = 0;
  if (!value->IsScalar() || !absl::SimpleAtoi(value->Scalar(), &number)) {
    AddError(key, "expected a whole number");
    return default_value;
  }
  if (number < min || number > max) {
    AddError(key, absl::StrCat("expected a number from ", min, " to ", max, ", got ", number));
    return default_value;
  }
  return number;
}

bool ConfigNode::GetBool(absl::string_view key, bool default_value) {
  std::optional<YAML::Node> value = impl_->Find(key);
  if (!value.has_value()) return default_value;
  if (value->IsScalar() && value->Scalar() == "true") return true;
  if (value->IsScalar() && value->Scalar() == "false") return false;
  AddError(key, "expected true or false");
  return default_value;
}

double ConfigNode::GetNumber(absl::string_view key, double default_value, double min, double max) {
  std::optional<YAML::Node> value = impl_->Find(key);
  if (!value.has_value()) return default_value;
  double number = 0;
  if (!value->IsScalar() || !absl::SimpleAtod(value->Scalar(), &number)) {
    AddError(key, "expected a number");
    return default_value;
  }
  if (!(number >= min && number <= max)) {
    AddError(key, absl::StrCat("expected a number from ", min, " to ", max, ", got ", value->Scalar()));
    return default_value;
  }
  return number;
}

double ConfigNode::GetRate(absl::string_view key, double default_value) {
  if (!Has(key)) return default_value;
  absl::StatusOr<double> rate = ParseRate(GetString(key, ""));
  if (rate.ok() && *rate <= 0) rate = absl::InvalidArgumentError("must be over 0");
  if (!rate.ok()) AddError(key, rate.status().message());
  return rate.value_or(default_value);
}

int64_t ConfigNode::GetBytes(absl::string_view key, int64_t default_value) {
  if (!Has(key)) return default_value;
  absl::StatusOr<int64_t> bytes = ParseBytes(GetString(key, "0 B"));
  if (!bytes.ok()) AddError(key, bytes.status().message());
  return bytes.value_or(default_value);
}

absl::Duration ConfigNode::GetDuration(absl::string_view key, absl::Duration default_value) {
  if (!Has(key)) return default_value;
  absl::StatusOr<absl::Duration> duration = ParseDurationSetting(GetString(key, "0s"));
  if (duration.ok() && *duration == absl::InfiniteDuration()) duration = absl::InvalidArgumentError("must be finite");
  if (!duration.ok()) AddError(key, duration.status().message());
  return duration.value_or(default_value);
}

std::vector<std::string> ConfigNode::GetStrings(absl::string_view key, std::vector<std::string> default_value) {
  std::optional<YAML::Node> value = impl_->Find(key);
  if (!value.has_value()) return default_value;
  if (!value->IsSequence()) {
    AddError(key, "expected a list");
    return default_value;
  }
  std::vector<std::string> items;
  for (const YAML::Node& item : *value) {
    if (!item.IsScalar()) {
      AddError(key, "expected a list of texts");
      return default_value;
    }
    items.push_back(item.Scalar());
  }
  return items;
}

ConfigNode ConfigNode::GetMap(absl::string_view key) {
  std::optional<YAML::Node> value = impl_->Find(key);
  if (value.has_value() && !value->IsMap()) {
    AddError(key, "expected a mapping");
    value.reset();
  }
  return ConfigNode(impl_->Child(value.value_or(YAML::Node(YAML::NodeType::Map)), absl::StrCat(impl_->path, key, "."),
                                 impl_->LineOf(key)));
}

std::vector<ConfigNode> ConfigNode::GetList(absl::string_view key) {
  std::vector<ConfigNode> items;
  std::optional<YAML::Node> value = impl_->Find(key);
  if (!value.has_value()) return items;
  if (!value->IsSequence()) {
    AddError(key, "expected a list of mappings");
    return items;
  }
  int index = 0;
  for (const YAML::Node& item : *value) {
    std::string path = absl::StrCat(impl_->path, key, "[", index++, "].");
    if (!item.IsMap()) {
      AddError(key, "expected a list of mappings");
      continue;
    }
    items.push_back(ConfigNode(impl_->Child(item, path, impl_->LineOf(key))));
  }
  return items;
}

void ConfigNode::AddError(absl::string_view key, absl::string_view message) {
  impl_->Error(impl_->LineOf(key), key, message);
}

std::string ConfigNode::Where(absl::string_view key) const {
  return absl::StrCat(impl_->document->name, ":", impl_->LineOf(key));
}

absl::Status ConfigNode::Finish() {
  impl_->CheckUnknownKeys();
  auto& errors = impl_->document->errors;
  if (errors.empty()) return absl::OkStatus();
  std::stable_sort(errors.begin(), errors.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> lines;
  for (const auto& [line, text] : errors) lines.push_back(text);
  return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
}

}  // namespace tandem
