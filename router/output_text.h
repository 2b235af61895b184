#pragma once

#include <string>
#include <vector>

#include "common/ids.h"
#include "model/tokenizer.h"

namespace tandem {

// Turns one sample's tokens into the text that its client sees: whole characters only, and nothing
// that is or may become a stop string.
//
// Thread-safety: not thread-safe.
// Ownership: borrows the tokenizer.
class OutputText {
 public:
  OutputText(const Tokenizer& tokenizer, std::vector<std::string> stops);

  // Appends one token to the text. True when a stop string is complete: then the text ended before
  // it.
  bool Append(TokenId token, bool check_stops);
  // The end: releases what was held back.
  void Finish();
  // Text that can be sent, once.
  std::string Take();

 private:
  // Moves what cannot be part of a stop string from pending_ to ready_; true on a whole match.
  bool Scan();

  Detokenizer detokenizer_;
  const std::vector<std::string> stops_;
  std::string pending_, ready_;
};

}  // namespace tandem
