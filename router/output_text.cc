#include "router/output_text.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace tandem {

OutputText::OutputText(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : detokenizer_(tokenizer), stops_(std::move(stops)) {}

bool OutputText::Append(TokenId token, bool check_stops) {
  detokenizer_.Append(token, pending_);
  if (!check_stops || stops_.empty()) {
    ready_ += std::exchange(pending_, {});
    return false;
  }
  return Scan();
}

bool OutputText::Scan() {
  size_t match = std::string::npos;
  for (const std::string& stop : stops_) match = std::min(match, pending_.find(stop));
  if (match != std::string::npos) {
    ready_.append(pending_, 0, match);
    pending_.clear();
    return true;
  }
  // Hold back the longest end that begins a stop string.
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, pending_.size()); length > hold; --length) {
      if (absl::EndsWith(pending_, absl::string_view(stop).substr(0, length))) {
        hold = length;
        break;
      }
    }
  }
  ready_.append(pending_, 0, pending_.size() - hold);
  pending_.erase(0, pending_.size() - hold);
  return false;
}

void OutputText::Finish() {
  detokenizer_.Finish(pending_);
  ready_ += std::exchange(pending_, {});
}

std::string OutputText::Take() { return std::exchange(ready_, {}); }

}  // namespace tandem
