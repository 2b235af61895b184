#include "router/long_texts.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"

namespace tandem {
namespace {

constexpr absl::Duration kRetryAfter = absl::Seconds(1);

absl::Status Stopping() { return absl::UnavailableError("the router is shutting down"); }

}  // namespace

LongTexts::LongTexts(size_t max_waiting_bytes) : max_waiting_bytes_(max_waiting_bytes), thread_([this] { Main(); }) {}

absl::Status LongTexts::Run(size_t bytes, Work work) {
  {
    absl::MutexLock lock(&mu_);
    if (waiting_bytes_ > 0 && waiting_bytes_ + bytes > max_waiting_bytes_) {
      return MakeError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
                       absl::StrCat("the router is full: ", waiting_bytes_, " bytes of text wait to be tokenised"),
                       kRetryAfter);
    }
    waiting_bytes_ += bytes;
  }
  if (texts_.Push({bytes, std::move(work)})) return absl::OkStatus();
  return Stopping();
}

void LongTexts::Main() {
  // Nothing comes after the close, so what is taken then is the rest.
  for (bool is_last = false; !is_last;) {
    is_last = texts_.closed();
    for (Text& text : texts_.TakeAll(absl::InfiniteDuration())) {
      text.work(texts_.closed() ? Stopping() : absl::OkStatus());
      text.work = nullptr;
      absl::MutexLock lock(&mu_);
      waiting_bytes_ -= text.bytes;
    }
  }
}

void LongTexts::Stop() {
  texts_.Close();
  if (thread_.joinable()) thread_.join();
}

}  // namespace tandem
