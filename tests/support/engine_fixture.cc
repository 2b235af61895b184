#include "tests/support/engine_fixture.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace tandem {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  fprintf(stderr, "%s\n", result.status().ToString().c_str());
  abort();
}

}  // namespace

EngineFixture::EngineFixture(const std::string& model_path, const Engine::Options& options, const Clock& clock)
    : engine_(ValueOrDie(Engine::Create(ValueOrDie(Checkpoint::Open(model_path)), options, clock))),
      memory_(engine_->layout().pool_bytes() + 64) {
  base_ = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64;
  engine_->SetKvMemory(base_);
}

std::vector<TokenId> EngineFixture::Generate(std::vector<TokenId> prompt, SamplingParams sampling) {
  SequenceRequest request;
  request.id = RequestId(next_id_++);
  request.prompt_tokens = static_cast<int>(prompt.size());
  request.tokens = std::move(prompt);
  request.sampling = std::move(sampling);
  if (absl::Status status = engine_->Add(std::move(request)); !status.ok()) {
    fprintf(stderr, "%s\n", status.ToString().c_str());
    return {};
  }
  std::vector<TokenId> tokens;
  for (const SequenceEvent& event : RunToEnd()) {
    if (event.token.has_value()) tokens.push_back(event.token->token);
  }
  return tokens;
}

std::vector<SequenceEvent> EngineFixture::RunToEnd() {
  std::vector<SequenceEvent> all;
  while (engine_->HasWork()) {
    for (SequenceEvent& event : engine_->Step(nullptr)) all.push_back(std::move(event));
  }
  return all;
}

}  // namespace tandem
