#pragma once

#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/topology.h"
#include "engine/constraint/format_thread.h"
#include "engine/kv_cache.h"
#include "engine/models/decoder_model.h"
#include "engine/ops.h"
#include "engine/rank_group.h"
#include "engine/sequence.h"
#include "engine/step_scheduler.h"
#include "model/checkpoint.h"
#include "model/weight_shard.h"

namespace tandem {

enum class FinishReason { kNone, kStop, kLength };

// What a step did for one sequence.
struct SequenceEvent {
  RequestId id;
  std::optional<SampledToken> token;          // Absent when a stop token ended the sequence.
  FinishReason finish = FinishReason::kNone;  // Set with the last event of a sequence that ended well.
  absl::Status error;                         // Not OK: the sequence failed and is gone.
  bool first_token = false;                   // The first event of this leg.
  int cached_tokens = 0;                      // With first_token: prompt tokens that were not computed.
  absl::Duration queue_time, prefill_time;    // With first_token.
};

// KV that was just written: tokens [begin_token, end_token) of layers [begin_layer, end_layer).
struct KvProgress {
  RequestId id;
  int begin_token = 0, end_token = 0;
  int begin_layer = 0, end_layer = 0;
  std::shared_ptr<const SourceEvent> ready;  // When it is there; null: now.
};

// Runs a model: sequences in, tokens out, one step at a time.
//
// With run_ahead a step is ordered before the tokens of the one before are known: its rows name them as unknown, and
// the device puts them in. A sequence that turns out to have ended was then computed once more in vain. Pages that
// such a step may still write to are freed only when it is over.
//
// A sequence with hold_after_first_token stays "held" after its first token: its pages are kept,
// unchanged, until Cancel. Every other end of a sequence frees its pages (its full pages stay as
// prefix cache).
//
// Of several ranks (tensor parallelism), the engine of rank 0 is used as any other, and those of the other ranks Follow
// it: they keep the same pages and no requests.
//
// Thread-safety: not thread-safe; the engine thread owns it and is the only caller.
// Ownership: owns model, KV memory bookkeeping and sequences. The KV memory itself is the caller's,
// so that it may be shared memory.
class Engine {
 public:
  struct Options {
    Precision precision = Precision::kQuantised;
    std::optional<int> gpu;                       // Absent: the CPU. Needs Precision::kBf16.
    int threads = 1;                              // Of the CPU.
    int64_t kv_memory_bytes = int64_t{64} << 20;  // 0, for a GPU: what is free when all else is there.
    bool float8_kv = false;                       // KV in FP8 instead of the precision's own type.
    int page_tokens = 16;
    int max_step_tokens = 256;
    int max_prefill_beside_decode = std::numeric_limits<int>::max();  // As StepScheduler has it.
    int max_running = 32;
    int max_waiting = 256;
    int layer_groups = 4;
    bool run_ahead = false;      // What a device computes goes on while the host looks at the step before.
    Shard shard;                 // Which rank of how many this is.
    RankGroup* ranks = nullptr;  // Where there are several: all of them; outlives the engine.
  };
  // What an engine with these options will take, without loading the weights. INVALID_ARGUMENT when the KV memory
  // holds no page, or TANDEM_CPU_KERNELS names what this processor does not run. UNIMPLEMENTED: a GPU, in a build
  // without the code for one.
  struct Needs {
    KvLayout layout;             // With 0 pages where what is free decides.
    int64_t weight_bytes = 0;    // Prepared; the CPU's embedding table stays in the mapped file.
    int max_context_tokens = 0;  // Of one sequence: the model's context or the pool, whichever is less.
  };
  static absl::StatusOr<Needs> Plan(const Checkpoint& checkpoint, const Options& options);
  // Prepares the model's weights. Errors as of Plan; UNIMPLEMENTED: a model family without code. UNAVAILABLE: there is
  // no such GPU. RESOURCE_EXHAUSTED: its memory does not hold the model, with figures.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::unique_ptr<Checkpoint> checkpoint, const Options& options,
                                                        const Clock& clock);

  // Shape of the pool; its memory is given by SetKvMemory before the first step.
  const KvLayout& layout() const { return layout_; }
  void SetKvMemory(uint8_t* base) { kv_base_ = base; }
  // Makes the first requests as fast as the later ones: records the steps that a device repeats, and runs one of each
  // kind. After SetKvMemory, before the first step; logs its progress.
  absl::Status WarmUp();
  ~Engine();
  // Ranks but the first, after WarmUp: computes what rank 0 plans, until that ends. Errors: it was lost.
  absl::Status Follow();

  // Takes a sequence. INVALID_ARGUMENT (REQUEST_TOO_LONG): it can never fit. RESOURCE_EXHAUSTED
  // (QUEUE_FULL). ALREADY_EXISTS. Nothing is kept on error. A format is compiled meanwhile, and fails it later where it
  // is none (INVALID_ARGUMENT) or cannot be followed by this model or machine (FAILED_PRECONDITION).
  absl::Status Add(SequenceRequest request);
  // Whether a sequence with KV may join, beside `on_their_way` others: not while sequences wait for pages or a place,
  // which would starve.
  bool CanTakeKv(int on_their_way) const {
    return !scheduler_.is_short() && scheduler_.num_running() + on_their_way < options_.max_running;
  }
  // Takes a sequence whose tokens but the last have their KV in `pages`, which it owns from now on.
  absl::Status AddWithKv(SequenceRequest request, std::vector<PageIndex> pages);
  // Begins to compile a format, for a request that will be added later.
  std::shared_ptr<FormatJob> CompileFormat(std::shared_ptr<const OutputFormat> format,
                                           absl::Span<const TokenId> output);
  // Ends a sequence, held or not, and frees its pages. False when there is none.
  bool Cancel(RequestId id);
  // Stops computing a sequence but keeps its pages until Cancel: they may still be read by a push.
  void StopAndHold(RequestId id);
  // Tokens of a sequence, held or not, whose KV is in its pages; 0 when unknown.
  int ComputedTokens(RequestId id) const;
  // Pages of a sequence, held or not; empty when unknown.
  absl::Span<const PageIndex> PagesOf(RequestId id) const;
  // When the KV of all ComputedTokens() is there; null: now.
  std::shared_ptr<const SourceEvent> KvReady() { return ops_->MarkProgress(); }

  // Orders one step, if there is one, and collects what it or, with run_ahead, the one before has sampled. The events
  // of ended and failed sequences are their last. `progress` is told about held sequences' KV as it is ordered.
  std::vector<SequenceEvent> Step(const std::function<void(const KvProgress&)>& progress);
  // Step() would do something.
  bool HasWork() const { return !scheduler_.empty() || !in_flight_.empty(); }

  KvCache& cache() { return cache_; }
  const StepScheduler& scheduler() const { return scheduler_; }
  const ModelConfig& model_config() const { return checkpoint_->config(); }
  uint64_t fingerprint() const { return fingerprint_; }
  int max_context_tokens() const { return max_context_tokens_; }  // As Needs says.
  int num_held() const { return static_cast<int>(held_.size()); }
  int64_t num_steps() const { return num_steps_; }

  // Log probabilities of every next token after each of the tokens, [tokens.size()][vocabulary],
  // without scheduler or cache: for comparisons with reference logits. Takes pages of the pool, so
  // the engine must be idle.
  absl::StatusOr<std::vector<std::vector<float>>> ScoreAll(absl::Span<const TokenId> tokens);

 private:
  Engine(std::unique_ptr<Checkpoint> checkpoint, const Options& options, const Clock& clock, const Needs& needs,
         std::unique_ptr<Ops> ops, std::unique_ptr<DecoderModel> model);
  static absl::Status SizePool(const Checkpoint& checkpoint, const Options& options, int64_t bytes, Needs& needs);
  static absl::StatusOr<std::unique_ptr<Ops>> MakeOps(const Checkpoint& checkpoint, const Options& options,
                                                      const Needs& needs);
  // A token that a step samples, and where it goes.
  struct PendingSample {
    RequestId id;
    uint64_t serial = 0;
    int token_index = 0;
    absl::Status error;  // Not OK: no token can be chosen.
  };
  // A step that was ordered and is not collected.
  struct PendingStep {
    std::vector<PendingSample> samples;
    std::vector<std::vector<PageIndex>> freed_pages;  // Of sequences that ended since: it may write to them.
  };
  absl::Status CheckRequest(const SequenceRequest& request) const;
  const Sequence* FindSequence(RequestId id) const;
  // A sequence that awaits its constraint.
  struct Compiling {
    RequestId id;
    uint64_t serial = 0;
    std::shared_ptr<FormatJob> job;
  };
  std::unique_ptr<Sequence> MakeSequence(SequenceRequest request);
  // The scheduler's sequence of this id leaves it: nobody waits for its constraint any more.
  std::unique_ptr<Sequence> TakeOut(RequestId id);
  // Gives sequences the constraints that have been compiled meanwhile.
  void TakeConstraints(std::vector<SequenceEvent>& events);
  // Makes the pages that became full findable.
  void Publish(Sequence& sequence);
  void EndEarly(RequestId id);
  void FailExpired(std::vector<SequenceEvent>& events);
  // Tells `progress` about cached prefixes of sequences that are scheduled for the first time.
  void ReportCachedPrefixes(absl::Span<const StepItem> items, const std::function<void(const KvProgress&)>& progress);
  StepBatch BuildBatch(absl::Span<const StepItem> items) const;
  // Orders a step on all ranks. `samples`: tokens are chosen of its logits.
  const Activation& Forward(const StepBatch& batch, bool samples, int group_layers, LayersDone layers_done);
  // Orders the step and appends it to in_flight_; false when its samples must be collected before the next one.
  bool Launch(absl::Span<const StepItem> items, const std::function<void(const KvProgress&)>& progress);
  // Appends the sampled tokens as unknown ones, and orders the sampling.
  bool LaunchSamples(absl::Span<const StepItem> items, const Activation& logits);
  // Waits for the oldest step in flight.
  void Collect(std::vector<SequenceEvent>& events);
  // Takes out a sequence that failed.
  SequenceEvent Fail(RequestId id, absl::Status error);
  // Records one sampled token; ends or holds the sequence where it should.
  SequenceEvent Advance(Sequence& sequence, int token_index, SampledToken token);
  // Whether the sequence ends with the token at this index, which is known.
  FinishReason CheckFinish(const Sequence& sequence, int token_index, TokenId token) const;
  bool IsAtLimit(const Sequence& sequence, int token_index) const;
  // Frees pages as soon as no step in flight may write to them.
  void Free(std::vector<PageIndex> pages);
  std::vector<TokenId> ForbiddenTokens(const Sequence& sequence) const;

  const std::unique_ptr<Checkpoint> checkpoint_;
  const Options options_;
  const Clock& clock_;
  const KvLayout layout_;
  const std::unique_ptr<Ops> ops_;
  const std::unique_ptr<DecoderModel> model_;
  const uint64_t fingerprint_;
  const int max_context_tokens_;
  uint8_t* kv_base_ = nullptr;
  KvCache cache_;
  std::unique_ptr<FormatThread> formats_;  // Made for the first request with a format.
  std::vector<Compiling> compiling_;
  StepScheduler scheduler_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Sequence>> held_;
  std::deque<PendingStep> in_flight_;
  uint64_t next_serial_ = 1;
  int64_t num_steps_ = 0;
};

}  // namespace tandem
