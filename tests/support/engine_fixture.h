#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "engine/engine.h"

namespace tandem {

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
  // The pool.
  uint8_t* memory() { return base_; }

 private:
  std::unique_ptr<Engine> engine_;
  std::vector<uint8_t> memory_;
  uint8_t* base_ = nullptr;
  uint64_t next_id_ = 1000;
};

}  // namespace tandem
