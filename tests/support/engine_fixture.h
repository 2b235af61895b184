#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "engine/engine.h"
#include "kvtransfer/worker_pool.h"

namespace tandem {

// Whether TANDEM_TEST_DEVICE=cuda asks for engines on GPUs (rank 0 on GPU 0): the tests of engine behaviour are the
// same there.
bool TestsRunOnGpu();
int NumTestGpus();

// An engine with memory of its own, for tests that run a model in their own thread.
class EngineFixture {
 public:
  // CHECK-fails when the model cannot be opened.
  EngineFixture(const std::string& model_path, const Engine::Options& options, const Clock& clock = Clock::Real());

  // Runs one request to its end and returns its tokens.
  std::vector<TokenId> Generate(std::vector<TokenId> prompt, SamplingParams sampling);
  // Steps until nothing is left to do; all events in order.
  std::vector<SequenceEvent> RunToEnd();
  Engine& engine() { return *engine_; }
  // For a thread of its own, which ends before this fixture: the memory stays here.
  std::unique_ptr<Engine> TakeEngine() { return std::move(engine_); }
  uint8_t* memory() { return pool_->base(); }
  // Copies pages of another engine's pool to pages of this one's.
  void CopyPages(const EngineFixture& from, absl::Span<const PageIndex> source, absl::Span<const PageIndex> target);

 private:
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<WorkerPool> pool_;
  uint64_t next_id_ = 1000;
};

}  // namespace tandem
