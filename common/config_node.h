#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace YAML {
class Node;
}

namespace tandem {

// One mapping of a YAML file, read strictly: every key must be asked for, every value must have the
// right type and unit, and each error says "file:line: key: what is wrong".
//
// Errors are collected rather than returned one by one, so that a user sees them all at once:
// getters return the default after an error, and Finish() returns what was wrong, unknown keys
// included.
//
// Thread-safety: not thread-safe.
// Ownership: nodes share the parsed document and the list of errors.
class ConfigNode {
 public:
  // NOT_FOUND for a missing file; INVALID_ARGUMENT with line for bad YAML or a root that is no
  // mapping.
  static absl::StatusOr<ConfigNode> ParseFile(const std::string& path);
  // As ParseFile, of text; `name` stands for the file in errors.
  static absl::StatusOr<ConfigNode> ParseText(const std::string& text, const std::string& name);

  bool Has(absl::string_view key) const;
  std::string GetString(absl::string_view key, absl::string_view default_value);
  std::string RequireString(absl::string_view key);
  // One of `allowed`.
  std::string GetEnum(absl::string_view key, absl::string_view default_value, const std::vector<std::string>& allowed);
  int64_t GetInt(absl::string_view key, int64_t default_value, int64_t min, int64_t max);
  double GetNumber(absl::string_view key, double default_value, double min, double max);
  bool GetBool(absl::string_view key, bool default_value);
  int64_t GetBytes(absl::string_view key, int64_t default_value);
  // Bytes a second; over 0.
  double GetRate(absl::string_view key, double default_value);
  absl::Duration GetDuration(absl::string_view key, absl::Duration default_value);
  std::vector<std::string> GetStrings(absl::string_view key, std::vector<std::string> default_value);
  // A nested mapping; an empty one where the key is missing.
  ConfigNode GetMap(absl::string_view key);
  // A sequence of mappings; empty where the key is missing.
  std::vector<ConfigNode> GetList(absl::string_view key);

  // Records "file:line: key: message", at the key's line (or the mapping's where it is missing).
  void AddError(absl::string_view key, absl::string_view message);
  // "file:line" of the key.
  std::string Where(absl::string_view key) const;

  // Checks this mapping and the nested ones that were asked for, for keys nobody asked for, and
  // returns all errors of the document as one INVALID_ARGUMENT, in order of lines.
  absl::Status Finish();

 private:
  struct Document;
  struct Impl;
  explicit ConfigNode(std::shared_ptr<Impl> impl);

  // Co-owners: copies of this handle, and the parent, which checks for unknown keys in Finish().
  std::shared_ptr<Impl> impl_;
};

}  // namespace tandem
