#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/ast.h"
#include "model/jinja/value.h"

namespace tandem::jinja {

// A parsed template.
//
// Thread-safety: thread-safe; immutable after Parse.
class Template {
 public:
  // INVALID_ARGUMENT names the line.
  static absl::StatusOr<std::unique_ptr<Template>> Parse(absl::string_view source);

  // INVALID_ARGUMENT "line N: cause": the template raised an exception, used a value wrongly, or
  // ran past the bounds of limits.h, which keep a hostile template from hurting anybody.
  absl::StatusOr<std::string> Render(std::vector<std::pair<std::string, Value>> variables) const;

 private:
  explicit Template(Block block) : block_(std::move(block)) {}
  const Block block_;
};

}  // namespace tandem::jinja
