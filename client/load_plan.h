#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace tandem {

// When requests come.
enum class Arrivals {
  kPoisson,   // Open loop: independent of each other and of the answers.
  kConstant,  // Open loop, evenly spaced.
  kTrace,     // Open loop, as a trace says.
  kClosed,    // As many as `concurrency` at any time: the next one comes when one has ended.
};

// Lengths are drawn evenly from low to high, both included.
struct LengthRange {
  int low = 0, high = 0;
};

struct LoadOptions {
  Arrivals arrivals = Arrivals::kPoisson;
  double requests_per_second = 1;  // kPoisson, kConstant.
  int concurrency = 1;             // kClosed.
  int requests = 100;              // kTrace: at most.
  LengthRange prompt = {128, 128};
  LengthRange output = {64, 64};
  // kTrace: an Azure trace (.csv: TIMESTAMP,ContextTokens,GeneratedTokens) or a Mooncake trace (.jsonl: timestamp in
  // ms, input_length, output_length, hash_ids of 512-token blocks, of which equal ones hold equal tokens).
  std::string trace;
  double speed = 1;            // Of the trace's time.
  double token_scale = 1;      // Of the trace's lengths, and of its blocks'.
  int max_context_tokens = 0;  // Requests that do not fit are left out of a trace, and an error else; 0: all fit.
  int vocabulary = 32'000;
  uint64_t seed = 1;
};

struct PlannedRequest {
  absl::Duration due;  // After the first one. kClosed: zero.
  int prompt_tokens = 0, output_tokens = 0;
  std::vector<int64_t> blocks;  // Of a Mooncake trace.
  int block_tokens = 512;
  uint64_t seed = 0;  // Of the tokens that no block gives.
};

struct LoadPlan {
  std::vector<PlannedRequest> requests;  // By due time.
  int left_out = 0;                      // Of the trace: longer than the model's context.
};

// INVALID_ARGUMENT names the option, or the trace's line. NOT_FOUND: no such trace.
absl::StatusOr<LoadPlan> MakeLoadPlan(const LoadOptions& options);

// The request's prompt: random tokens, the same for the same seed; a block of a trace gives the same ones wherever it
// stands.
std::vector<TokenId> MakePrompt(const PlannedRequest& request, int vocabulary);

}  // namespace tandem
