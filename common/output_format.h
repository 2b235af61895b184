#pragma once

#include <string>

namespace tandem {

// What an answer must look like, token by token: constrained decoding.
struct OutputFormat {
  enum class Kind {
    kJsonSchema,  // An object: JSON that the schema describes.
    kRegex,       // The whole answer, in the syntax of Rust's regex.
    kLark         // A context-free grammar in llguidance's variant of Lark; its rule `start` is the whole answer.
  };
  enum class Reasoning {
    kNone,          // The format is that of all that comes.
    kMayComeFirst,  // <think>...</think> may stand before it.
    kIsOpen         // The prompt opened <think>: the format is that of what comes after </think>.
  };
  Kind kind = Kind::kJsonSchema;
  std::string text;
  Reasoning reasoning = Reasoning::kNone;
};

}  // namespace tandem
