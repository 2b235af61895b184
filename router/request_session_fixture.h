#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "gtest/gtest.h"
#include "router/request_session.h"
#include "tests/support/fake_outside.h"
#include "tests/support/test_time.h"

namespace tandem {

inline constexpr Incarnation kPrefill(1), kPrefill2(2), kDecode(11), kDecode2(12);

inline absl::Status Retryable(ErrorReason reason) {
  return MakeError(absl::StatusCode::kUnavailable, reason, "because");
}

// A session that is driven by hand, on two prefill and two decode workers.
class RequestSessionTest : public testing::Test {
 protected:
  RequestSessionTest() : tokenizer_(Letters()) {
    for (Incarnation id : {kPrefill, kPrefill2, kDecode, kDecode2}) {
      view_.Register({.worker_id = absl::StrCat("w", id.value()), .incarnation = id, .page_tokens = 4}, kNow);
    }
    request_.name = "r";
    request_.prompt = {0, 1, 2};
    request_.arrival = kNow;
  }
  void Begin(int sample = 0) {
    session_ = std::make_unique<RequestSession>(options_, request_, sample, *tokenizer_, kNow);
    EXPECT_TRUE(Do(session_->Begin()).needs_placement);
  }
  // What became of it when it was placed so.
  std::optional<absl::Status> EndOf(const Placement& placement, absl::Time now, int sample = 0) {
    Begin(sample);
    return Do(session_->OnPlaced(placement, view_, now)).finished;
  }
  // Where the first token comes after 10 s.
  static Placement Late(Incarnation prefill, Incarnation decode) {
    Placement placement{prefill, decode};
    placement.predicted_ttft = absl::Seconds(10);
    placement.is_sure_to_wait = true;
    return placement;
  }
  // Begins and places on the first pair.
  void Start() {
    Begin();
    Place(kPrefill, kDecode);
  }
  const SessionActions& Place(Incarnation prefill, Incarnation decode) {
    return Do(session_->OnPlaced(Placement{prefill, decode}, view_, now_));
  }
  const SessionActions& Prefill(LegEvent event) {
    return Do(session_->OnLegEvent(LegKind::kPrefill, std::move(event), now_));
  }
  const SessionActions& Decode(LegEvent event) {
    return Do(session_->OnLegEvent(LegKind::kDecode, std::move(event), now_));
  }
  static LegEvent Tokens(std::vector<TokenId> ids, LegFinish finish = LegFinish::kNone) {
    LegEvent event{.finish = finish};
    for (TokenId id : ids) event.tokens.push_back({.token = id});
    return event;
  }
  // Of the decode leg that was started last.
  HandoverId Handover() const { return handover_; }
  // To the middle of decoding: "def" is out.
  void StartDecoding() {
    Start();
    Prefill(Tokens({3}));
    Decode({.taken_over = true});
    Decode(Tokens({4, 5}));
  }
  const SessionActions& Do(SessionActions actions) {
    text_ += actions.update.text;
    if (!actions.starts.empty()) handover_ = actions.starts[0].second.handover;
    last_ = std::move(actions);
    return last_;
  }

  RequestSession::Options options_;
  Request request_;
  ClusterView view_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<RequestSession> session_;
  SessionActions last_;
  HandoverId handover_;
  std::string text_;
  absl::Time now_ = kNow;
};

}  // namespace tandem
