#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"
#include "common/output_format.h"
#include "engine/constraint/llguidance.h"
#include "model/model_config.h"
#include "model/tokenizer.h"

namespace tandem {

// Which tokens may come next in one answer of a given format.
//
// Thread-safety: not thread-safe.
// Ownership: shares the vocabulary with the compiler that made it.
class TokenConstraint {
 public:
  ~TokenConstraint() { library_.free_matcher(matcher_); }
  TokenConstraint(const TokenConstraint&) = delete;
  TokenConstraint& operator=(const TokenConstraint&) = delete;

  // A bit for each token of the vocabulary, the lowest first; valid until the next call. Only tokens that end the
  // sequence, where the answer is complete. INVALID_ARGUMENT: the format is too ambiguous to be followed.
  absl::StatusOr<absl::Span<const uint32_t>> Allowed();
  // Goes on by tokens that were allowed. INVALID_ARGUMENT: one was not, or what follows is
  // too ambiguous.
  absl::Status Accept(absl::Span<const TokenId> tokens);

 private:
  friend class ConstraintCompiler;
  TokenConstraint(const llguidance::Library& library, std::shared_ptr<llguidance::Tokenizer> vocabulary,
                  llguidance::Matcher* matcher)
      : library_(library),
        vocabulary_(std::move(vocabulary)),
        matcher_(matcher),
        mask_(library.mask_bytes(matcher) / sizeof(uint32_t)) {}
  // Of the last call, which failed.
  absl::Status Error();
  const llguidance::Library& library_;
  const std::shared_ptr<llguidance::Tokenizer> vocabulary_;  // Which the matcher uses.
  llguidance::Matcher* const matcher_;
  std::vector<uint32_t> mask_;
};

// Makes constraints for the tokens of one model.
//
// Thread-safety: not thread-safe; its constraints may be used in other threads.
// Ownership: shares the vocabulary, in llguidance's form, with its constraints.
class ConstraintCompiler {
 public:
  // Takes a tenth of a second for 50,000 tokens. FAILED_PRECONDITION: llguidance's library is not there, or no token
  // ends the model's sequences.
  static absl::StatusOr<std::unique_ptr<ConstraintCompiler>> Create(const Tokenizer& tokenizer,
                                                                    const ModelConfig& config);
  // INVALID_ARGUMENT "response_format: what is wrong with it". May take seconds, and a stack in proportion to the depth
  // of the format.
  absl::StatusOr<std::unique_ptr<TokenConstraint>> Compile(const OutputFormat& format) const;

 private:
  ConstraintCompiler(const llguidance::Library& library, std::shared_ptr<llguidance::Tokenizer> vocabulary)
      : library_(library), vocabulary_(std::move(vocabulary)) {}
  const llguidance::Library& library_;
  const std::shared_ptr<llguidance::Tokenizer> vocabulary_;
};

// The format as llguidance's JSON of grammars. INVALID_ARGUMENT: a schema that is no JSON object.
absl::StatusOr<std::string> GuidanceGrammar(const OutputFormat& format);

}  // namespace tandem
