#pragma once

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "common/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/http/openai_service.h"
#include "tests/support/fake_outside.h"
#include "tests/support/http_client.h"
#include "tests/support/status_matchers.h"

namespace tandem {

// OpenAI's calls over real sockets, with a core whose workers the test plays.

inline constexpr Incarnation kDecode(11);
inline constexpr char kCompletions[] = "/v1/completions", kChat[] = "/v1/chat/completions";

class OpenAiServiceTest : public testing::Test {
 protected:
  explicit OpenAiServiceTest(ApiKeys api_keys = {})
      // What the letters {, | and } stand for in Generate.
      : tokenizer_(Letters({"<think>", "</think>", R"(<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>)"})),
        chat_template_(*ChatTemplate::Create("{% for m in messages %}{{ m.content }}{% endfor %}", "", "")),
        builder_("letters", *tokenizer_, chat_template_.get()),
        api_keys_(std::move(api_keys)),
        core_({.max_active_requests = 8,
               .max_retries = 0,
               .split = false,
               .tenants = api_keys_.tenants(),
               .model_fingerprint = 1,
               .model_context_tokens = 500},
              *tokenizer_, metrics_, outside_, clock_),
        service_({.served_name = "letters",
                  .max_samples = 8,
                  .chat_format = {ToolFormat::kHermes, /*reasons=*/true},
                  .api_keys = api_keys_,
                  .tokenizer = *tokenizer_,
                  .builder = builder_,
                  .core = core_,
                  .long_texts = long_texts_,
                  .relay = relay_,
                  .gate = gate_,
                  .clock = clock_},
                 metrics_server_),
        server_(*HttpServer::Create({}, service_)),
        client_(server_->address()) {
    service_.Attach(*server_);
    relay_.Attach(*server_);
    outside_.on_end_turn = [this] { relay_.EndTurn(); };
    server_->Start();
    core_.Start();
  }
  ~OpenAiServiceTest() override {
    long_texts_.Stop();
    core_.FailAll();
    server_->Stop(absl::Milliseconds(100));
    core_.Stop();
  }

  void RegisterWorker(const std::string& name = "decode-0", Incarnation worker = kDecode) {
    core_.OnRegister(LettersWorker(name, worker), [](const absl::Status& status) { EXPECT_THAT(status, IsOk()); });
    core_.OnWorkerSession(worker, true);
    core_.OnHeartbeat(worker, {.free_pages = 100, .pages = {{"free", 100}}, .state = "ready", .sequence = 1});
  }
  // The legs that workers were told to start, once there are so many.
  std::vector<std::pair<Incarnation, StartLeg>> AwaitPlacedStarts(size_t count) {
    std::vector<std::pair<Incarnation, StartLeg>> starts;
    AwaitOnOwner([&] {
      if (outside_.starts.size() < count) return false;
      starts.assign(outside_.starts.begin(), outside_.starts.end());
      return true;
    });
    return starts;
  }
  std::vector<StartLeg> AwaitStarts(size_t count) {
    std::vector<StartLeg> starts;
    for (auto& [worker, start] : AwaitPlacedStarts(count)) starts.push_back(std::move(start));
    return starts;
  }
  void AwaitCancels(size_t count) {
    AwaitOnOwner([&] { return outside_.cancels.size() >= count; });
  }
  void Generate(RequestId leg, const std::string& letters, LegFinish finish = LegFinish::kNone,
                Incarnation worker = kDecode) {
    LegEvent event{.id = leg, .finish = finish};
    for (char letter : letters) {
      event.tokens.push_back({.token = letter - 'a', .logprob = -0.5f, .top = {{letter - 'a', -0.5f}}});
    }
    core_.OnWorkerEvents(worker, {{std::move(event)}});
  }
  // The data of the next events, up to `count`.
  std::vector<std::string> ReadEvents(size_t count) {
    std::vector<std::string> events;
    while (events.size() < count) {
      const std::string chunk = client_.ReadChunk();
      if (chunk.empty()) break;
      for (absl::string_view event : absl::StrSplit(chunk, "\n\n", absl::SkipEmpty())) {
        EXPECT_TRUE(absl::ConsumePrefix(&event, "data: ")) << event;
        events.emplace_back(event);
      }
    }
    return events;
  }
  // One value of a JSON text, by pointer; as JSON.
  static std::string At(const std::string& body, const std::string& pointer) {
    boost::json::error_code error;
    const boost::json::value value = boost::json::parse(body, error);
    if (error) return absl::StrCat("no JSON: ", body);
    const boost::json::value* found = value.find_pointer(pointer, error);
    return found == nullptr ? "nothing" : boost::json::serialize(*found);
  }

  FakeClock clock_;
  MetricsServer metrics_server_;
  RouterMetrics metrics_{metrics_server_, "letters"};
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  RequestBuilder builder_;
  ApiKeys api_keys_;
  FakeOutside outside_;
  LongTexts long_texts_;
  TurnRelay relay_;
  Gate gate_;
  RouterCore core_;
  OpenAiService service_;
  std::unique_ptr<HttpServer> server_;
  HttpClient client_;

 private:
  // Asks on the owner thread, again and again, for 10 s.
  void AwaitOnOwner(std::function<bool()> condition) {
    const absl::Time deadline = Clock::Real().Now() + absl::Seconds(10);
    for (bool met = false; !met;) {
      ASSERT_LT(Clock::Real().Now(), deadline);
      absl::Mutex mu;
      bool asked = false;
      core_.Run([&] {
        const bool is_met = condition();
        absl::MutexLock lock(&mu);
        met = is_met;
        asked = true;
      });
      absl::MutexLock lock(&mu);
      mu.Await(absl::Condition(&asked));
    }
  }
};

}  // namespace tandem
