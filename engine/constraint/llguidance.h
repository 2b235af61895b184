#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

// The C interface of llguidance 1.9 as far as it is used here: its wheel brings the library, but no header. Layouts are
// those of parser/llguidance.h of its source.
namespace tandem::llguidance {

struct Tokenizer;
struct Matcher;

struct TokenizerInit {
  size_t struct_size = sizeof(TokenizerInit);
  uint32_t vocabulary_size = 0;
  uint32_t end_token = 0;
  const uint32_t* token_lengths = nullptr;  // [vocabulary_size]
  const uint8_t* token_bytes = nullptr;     // All tokens' bytes; a 0xFF goes before those of special ones.
  const char* tokenizer_json = nullptr;
  bool tokenize_wants_utf8 = false;
  void (*tokenize)() = nullptr;
  bool tokenizes_greedily = false;  // Text that must come is then not forced into one way of writing it in tokens.
  const void* tokenize_user_data = nullptr;
  const char* const* slices = nullptr;
  const uint32_t* more_end_tokens = nullptr;
  uint32_t num_more_end_tokens = 0;
};

struct Limits {
  size_t max_items_in_row = 0;
  uint64_t initial_lexer_fuel = 0, step_lexer_fuel = 0;
  size_t step_max_items = 0, max_lexer_states = 0, max_grammar_size = 0;
  bool precompute_large_lexemes = false, verbose_errors = false;
};

struct MatcherInit {
  const Tokenizer* tokenizer = nullptr;
  uint32_t log_buffer_level = 0, log_stderr_level = 0;
  bool fast_forward = false, backtrack = false;
  Limits limits;
  char reserved[256] = {};  // set_defaults writes what the library knows, which may be more in a later version.
};

// Integers that are returned are 0, or -1 for an error, which matcher_error tells.
struct Library {
  Tokenizer* (*new_tokenizer)(const TokenizerInit*, char* error, size_t error_capacity) = nullptr;
  void (*free_tokenizer)(Tokenizer*) = nullptr;
  void (*set_defaults)(MatcherInit*, const Tokenizer*) = nullptr;
  Matcher* (*new_matcher)(const MatcherInit*, const char* kind, const char* grammar) = nullptr;
  void (*free_matcher)(Matcher*) = nullptr;
  const char* (*matcher_error)(Matcher*) = nullptr;  // Null: none.
  size_t (*mask_bytes)(const Matcher*) = nullptr;
  int32_t (*compute_mask)(Matcher*, uint32_t* mask, size_t mask_bytes) = nullptr;
  int32_t (*consume)(Matcher*, const uint32_t* tokens, size_t count) = nullptr;
};

// Opens the library when it is first wanted. FAILED_PRECONDITION: it is not in the folder lib beside the program's own
// (bin), nor where the system looks for libraries, or lacks a function.
absl::StatusOr<const Library*> Load();

}  // namespace tandem::llguidance
