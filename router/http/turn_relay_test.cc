#include "router/http/turn_relay.h"

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A thread that runs what was posted when the test says so.
class StoppedServer final : public HttpServer {
 public:
  void Start() override {}
  const std::string& address() const override { return address_; }
  void Post(absl::AnyInvocable<void()> work) override { posted.push_back(std::move(work)); }
  void Stop(absl::Duration) override {}
  void RunAll() {
    while (!posted.empty()) {
      posted.front()();
      posted.pop_front();
    }
  }
  std::deque<absl::AnyInvocable<void()>> posted;

 private:
  const std::string address_;
};

class Listener final : public RequestListener {
 public:
  void OnUpdate(int request, SampleUpdate update) override {
    heard.push_back(absl::StrCat(request, ".", update.index, ":", update.text, update.tokens.size()));
  }
  void OnFinish(int request, const absl::Status& status, const RequestUsage&) override {
    heard.push_back(absl::StrCat(request, " ends ", absl::StatusCodeToString(status.code())));
  }
  std::vector<std::string> heard;
};

class TurnRelayTest : public testing::Test {
 protected:
  TurnRelayTest() { relay_.Attach(server_); }
  static SampleUpdate Text(const std::string& text, int index = 0) {
    return {.index = index, .text = text, .tokens = {{}}};
  }
  StoppedServer server_;
  TurnRelay relay_;
  std::shared_ptr<Listener> listener_ = std::make_shared<Listener>();
};

TEST_F(TurnRelayTest, ATurnIsOnePost) {
  auto first = relay_.NewSink(listener_, 0), second = relay_.NewSink(listener_, 1);
  first->Write(Text("a"));
  second->Write(Text("b"));
  first->Write(Text("c"));
  second->Finish(absl::InternalError("x"), {});
  relay_.EndTurn();
  relay_.EndTurn();  // Nothing happened.
  EXPECT_THAT(server_.posted, SizeIs(1));
  EXPECT_THAT(listener_->heard, IsEmpty());
  server_.RunAll();
  EXPECT_THAT(listener_->heard, ElementsAre("0.0:a1", "1.0:b1", "0.0:c1", "1 ends INTERNAL"));
}

TEST_F(TurnRelayTest, WhatWaitsForAServerThatLagsIsPutTogether) {
  auto sink = relay_.NewSink(listener_, 0);
  for (int turn = 0; turn < 1000; ++turn) {
    sink->Write(Text("x"));
    relay_.EndTurn();
  }
  EXPECT_THAT(server_.posted, SizeIs(256));
  server_.RunAll();
  listener_->heard.clear();
  sink->Write(Text("y"));
  sink->Write(Text("z", /*index=*/1));
  sink->Write(Text("y"));
  sink->Write(Text("z", /*index=*/1));
  sink->Finish(absl::OkStatus(), {});
  relay_.EndTurn();
  server_.RunAll();
  // 744 turns waited; all but the first of them, and the next update, were added to it.
  EXPECT_THAT(listener_->heard,
              ElementsAre(absl::StrCat("0.0:", std::string(744, 'x'), "yy746"), "0.1:zz2", "0 ends OK"));
}

}  // namespace
}  // namespace tandem
