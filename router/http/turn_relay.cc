#include "router/http/turn_relay.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/cord.h"

namespace tandem {
namespace {

constexpr int kMaxTurnsOnTheirWay = 256;

// Appends what is new of a sample to what was.
void Merge(SampleUpdate later, SampleUpdate& update) {
  update.text += later.text;
  std::move(later.tokens.begin(), later.tokens.end(), std::back_inserter(update.tokens));
  update.finish = later.finish;
}

}  // namespace

class TurnRelay::Sink final : public ResponseSink {
 public:
  Sink(TurnRelay& relay, std::shared_ptr<RequestListener> listener, int request)
      : relay_(relay), listener_(std::move(listener)), request_(request) {}
  void Write(SampleUpdate update) override {
    last_.resize(std::max<size_t>(last_.size(), update.index + 1));
    Place& last = last_[update.index];
    if (relay_.holds_back_ && last.turn == relay_.turns_sent_) {
      Merge(std::move(update), relay_.turn_[last.at].update);
      return;
    }
    last = {relay_.turns_sent_, relay_.turn_.size()};
    relay_.turn_.push_back({.listener = listener_, .request = request_, .update = std::move(update)});
  }
  void Finish(const absl::Status& status, const RequestUsage& usage) override {
    // A copy that shares nothing: ThreadSanitizer does not see how Debian's abseil counts a shared status.
    absl::Status copy(status.code(), status.message());
    status.ForEachPayload([&](absl::string_view type, const absl::Cord& payload) {
      copy.SetPayload(type, absl::Cord(std::string(payload)));
    });
    relay_.turn_.push_back(
        {.listener = listener_, .request = request_, .is_end = true, .status = std::move(copy), .usage = usage});
  }

 private:
  TurnRelay& relay_;
  const std::shared_ptr<RequestListener> listener_;  // Co-owners: the connection that waits for the answer.
  const int request_;
  // Where a sample's last update is, while that waits.
  struct Place {
    uint64_t turn = UINT64_MAX;
    size_t at = 0;
  };
  std::vector<Place> last_;
};

std::shared_ptr<ResponseSink> TurnRelay::NewSink(std::shared_ptr<RequestListener> listener, int request) {
  return std::make_shared<Sink>(*this, std::move(listener), request);
}

void TurnRelay::EndTurn() {
  if (turn_.empty()) return;
  holds_back_ = turns_on_their_way_.load(std::memory_order_acquire) >= kMaxTurnsOnTheirWay;
  if (holds_back_) return;  // The owner thread's next turn, in 20 ms at the latest, looks again.
  turns_on_their_way_.fetch_add(1, std::memory_order_relaxed);
  ++turns_sent_;
  server_->Post([this, turn = std::exchange(turn_, {})]() mutable {
    for (News& news : turn) {
      if (news.is_end) {
        news.listener->OnFinish(news.request, news.status, news.usage);
      } else {
        news.listener->OnUpdate(news.request, std::move(news.update));
      }
    }
    turns_on_their_way_.fetch_sub(1, std::memory_order_release);
  });
}

}  // namespace tandem
