#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace tandem {

// One prompt of tests/golden with what the reference implementation said about it; see the README
// there.
struct GoldenPrompt {
  std::string name, text;
  std::vector<TokenId> ids;           // The prompt.
  std::vector<TokenId> continuation;  // Greedy.
  // SmolLM2: per continuation token. Tiny models: per position of prompt and continuation.
  std::vector<double> margin;                                 // Of the best over the second logit.
  std::vector<std::vector<std::pair<TokenId, double>>> top5;  // Log probabilities.
};

// Reads a *.jsonl of tests/golden, by its path from there. NOT_FOUND or INVALID_ARGUMENT.
absl::StatusOr<std::vector<GoldenPrompt>> ReadGoldenFile(const std::string& path);

// Absolute path of a file of the repository.
std::string SourcePath(const std::string& path);
// The SmolLM2 model file that deploy/install_dependencies puts into build/models.
std::string SmolLm2Path();

}  // namespace tandem
