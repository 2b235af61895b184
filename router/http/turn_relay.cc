#include "router/http/turn_relay.h"

#include <utility>

namespace tandem {

class TurnRelay::Sink final : public ResponseSink {
 public:
  Sink(TurnRelay& relay, std::shared_ptr<RequestListener> listener, int request)
      : relay_(relay), listener_(std::move(listener)), request_(request) {}
  void Write(SampleUpdate update) override {
    relay_.turn_.push_back({.listener = listener_, .request = request_, .update = std::move(update)});
  }
  void Finish(const absl::Status& status, const RequestUsage& usage) override {
    relay_.turn_.push_back(
        {.listener = listener_, .request = request_, .is_end = true, .status = status, .usage = usage});
  }

 private:
  TurnRelay& relay_;
  const std::shared_ptr<RequestListener> listener_;  // Co-owners: the connection that waits for the answer.
  const int request_;
};

std::shared_ptr<ResponseSink> TurnRelay::NewSink(std::shared_ptr<RequestListener> listener, int request) {
  return std::make_shared<Sink>(*this, std::move(listener), request);
}

void TurnRelay::EndTurn() {
  if (turn_.empty()) return;
  server_->Post([turn = std::exchange(turn_, {})]() mutable {
    for (News& news : turn) {
      if (news.is_end) {
        news.listener->OnFinish(news.request, news.status, news.usage);
      } else {
        news.listener->OnUpdate(news.request, std::move(news.update));
      }
    }
  });
}

}  // namespace tandem
