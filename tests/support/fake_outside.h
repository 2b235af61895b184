#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer.h"
#include "router/router_core.h"

namespace tandem {

// Token i is the letter 'a' + i; behind them come `further` ones.
inline std::unique_ptr<Tokenizer> Letters(const std::vector<std::string>& further = {}) {
  TokenizerSpec spec;
  for (char letter = 'a'; letter <= 'z'; ++letter) spec.tokens.push_back({std::string(1, letter)});
  for (const std::string& token : further) spec.tokens.push_back({token});
  return *Tokenizer::Create(std::move(spec));
}

// A decode worker with a pool of 100 pages, for a router whose model is 1.
inline WorkerRegistration LettersWorker(const std::string& name, Incarnation incarnation) {
  return {.worker_id = name,
          .incarnation = incarnation,
          .role = Role::kDecode,
          .model_fingerprint = 1,
          .total_pages = 100,
          .page_tokens = 4,
          .max_context_tokens = 400};
}

// Workers that only remember what the core sent them. Touched on the core's owner thread; tests look when that has
// nothing to do.
class FakeOutside final : public RouterOutside {
 public:
  class Client final : public WorkerClient {
   public:
    Client(FakeOutside& outside, Incarnation worker) : outside_(outside), worker_(worker) {}
    void Send(const CommandFrame& frame) override {
      for (const StartLeg& start : frame.starts) outside_.starts.emplace_back(worker_, start);
      for (const CancelLeg& cancel : frame.cancels) outside_.cancels.emplace_back(worker_, cancel.id);
    }

   private:
    FakeOutside& outside_;
    const Incarnation worker_;
  };
  std::unique_ptr<WorkerClient> Connect(const WorkerRegistration& registration) override {
    return std::make_unique<Client>(*this, registration.incarnation);
  }
  void Direct(Incarnation worker, const RouterDirective& directive) override {
    directives.emplace_back(worker, directive);
  }
  void Expel(Incarnation worker, const std::string&) override { expelled.push_back(worker); }
  void Export(std::vector<Span> of_call) override { spans.push_back(std::move(of_call)); }
  void EndTurn() override {
    if (on_end_turn) on_end_turn();
  }
  std::vector<std::pair<Incarnation, StartLeg>> starts;
  std::vector<std::pair<Incarnation, RequestId>> cancels;
  std::vector<std::pair<Incarnation, RouterDirective>> directives;
  std::vector<Incarnation> expelled;
  std::vector<std::vector<Span>> spans;  // By call.
  std::function<void()> on_end_turn;
};

}  // namespace tandem
