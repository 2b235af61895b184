#include "tests/support/engine_fixture.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "engine/cuda/cuda_ops.h"

namespace tandem {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  fprintf(stderr, "%s\n", result.status().ToString().c_str());
  exit(1);
}

Engine::Options ForDevice(Engine::Options options) {
  if (TestsRunOnGpu()) {
    options.gpu = options.shard.rank;
    options.precision = Precision::kBf16;
  }
  return options;
}

}  // namespace

bool TestsRunOnGpu() {
  const char* device = std::getenv("TANDEM_TEST_DEVICE");
  return device != nullptr && std::string(device) == "cuda";
}

int NumTestGpus() {
  int count = 0;
  while (FreeDeviceBytes(count).ok()) ++count;
  return count;
}

EngineFixture::EngineFixture(const std::string& model_path, const Engine::Options& options, const Clock& clock)
    : engine_(ValueOrDie(Engine::Create(ValueOrDie(Checkpoint::Open(model_path)), ForDevice(options), clock))),
      pool_(ValueOrDie(WorkerPool::Create(
          {.gpu = ForDevice(options).gpu, .bytes = static_cast<uint64_t>(engine_->layout().pool_bytes())}))) {
  engine_->SetKvMemory(pool_->base());
  if (absl::Status status = engine_->WarmUp(); !status.ok()) ValueOrDie<int>(status);
}

void EngineFixture::CopyPages(const EngineFixture& from, absl::Span<const PageIndex> source,
                              absl::Span<const PageIndex> target) {
  const int64_t bytes = engine_->layout().page_bytes();
  std::vector<CopyRun> runs;
  for (size_t i = 0; i < source.size(); ++i) runs.push_back({source[i] * bytes, target[i] * bytes, bytes});
  ValueOrDie(pool_->memory().StartCopy(from.pool_->base(), pool_->base(), runs))->Wait();
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
