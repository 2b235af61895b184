#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/error_reason.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/step_plan.h"

namespace tandem {

namespace {

// Whether a token may come that is not forbidden.
bool LeavesAny(absl::Span<const uint32_t> allowed, absl::Span<const TokenId> forbidden) {
  if (forbidden.empty()) return true;
  std::vector<uint32_t> left(allowed.begin(), allowed.end());
  for (TokenId token : forbidden) {
    if (token >= 0 && static_cast<size_t>(token) / 32 < left.size()) left[token / 32] &= ~(1u << (token % 32));
  }
  return std::any_of(left.begin(), left.end(), [](uint32_t bits) { return bits != 0; });
}

}  // namespace

absl::Status Engine::WarmUp() {
  if (!options_.gpu.has_value()) return absl::OkStatus();
  const KvPoolView kv{layout_, kv_base_};
  const auto forward = [&](const StepBatch& batch) -> const Activation& {
    return model_->Forward(batch, kv, layout_.num_layers, [](int, int) {});
  };
  absl::Time told = clock_.Now();
  RETURN_IF_ERROR(ops_->RecordSteps(forward, [&](double done) {
    if (done < 1 && clock_.Now() - told < absl::Seconds(1)) return;
    told = clock_.Now();
    LogInfo("steps are recorded", {{"percent", static_cast<int>(100 * done)}});
  }));
  // Prompts of growing length, so that the kernels for each are loaded.
  for (int tokens = 2; tokens <= options_.max_step_tokens; tokens *= 2) {
    auto pages = cache_.Allocate(cache_.PagesFor(tokens));
    if (!pages.has_value()) break;
    StepBatch batch;
    batch.tokens.assign(tokens, 0);
    for (int i = 0; i < tokens; ++i) batch.positions.push_back(i);
    batch.sequences.push_back({.first_row = 0, .num_rows = tokens, .context_tokens = tokens, .pages = *pages});
    batch.logit_rows = {tokens - 1};
    const SamplingParams greedy;
    ops_->StartSample(forward(batch), {{.params = &greedy}});
    ops_->CollectSamples();
    cache_.Release(*pages);
  }
  return absl::OkStatus();
}

Engine::Engine(std::unique_ptr<Checkpoint> checkpoint, const Options& options, const Clock& clock, const Needs& needs,
               std::unique_ptr<Ops> ops, std::unique_ptr<DecoderModel> model)
    : checkpoint_(std::move(checkpoint)),
      options_(options),
      clock_(clock),
      layout_(needs.layout),
      ops_(std::move(ops)),
      model_(std::move(model)),
      fingerprint_(checkpoint_->Fingerprint(options.precision)),
      max_context_tokens_(needs.max_context_tokens),
      cache_(layout_.num_pages, options.page_tokens),
      scheduler_({.max_step_tokens = options.max_step_tokens,
                  .max_running = options.max_running,
                  .max_prefill_beside_decode = options.max_prefill_beside_decode},
                 cache_) {}

Engine::~Engine() { ops_->Finish(); }

absl::Status Engine::CheckRequest(const SequenceRequest& request) const {
  if (request.tokens.empty()) return absl::InvalidArgumentError("prompt: must have at least one token");
  if (request.tokens.size() >= max_context_tokens_) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, ErrorReason::kRequestTooLong,
        absl::StrCat("prompt: ", request.tokens.size(), " tokens leave no room for output in the context of ",
                     max_context_tokens_, " tokens"));
  }
  for (TokenId token : request.tokens) {
    if (token < 0 || token >= model_config().vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompt: token id ", token, " is not in the vocabulary of ", model_config().vocab_size));
    }
  }
  if (scheduler_.Find(request.id) != nullptr || held_.contains(request.id)) {
    return absl::AlreadyExistsError(absl::StrCat("request ", request.id.value(), " is running already"));
  }
  return absl::OkStatus();
}

absl::Status Engine::Add(SequenceRequest request) {
  RETURN_IF_ERROR(CheckRequest(request));
  if (scheduler_.num_waiting() >= options_.max_waiting) {
    return MakeError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
                     absl::StrCat("queue is full: ", options_.max_waiting, " requests wait"));
  }
  scheduler_.Add(MakeSequence(std::move(request)));
  return absl::OkStatus();
}

std::unique_ptr<Sequence> Engine::MakeSequence(SequenceRequest request) {
  auto sequence = std::make_unique<Sequence>();
  sequence->serial = next_serial_++;
  sequence->request = std::move(request);
  sequence->arrival = clock_.Now();
  if (const auto& format = sequence->request.sampling.format; format != nullptr) {
    std::shared_ptr<FormatJob> job = std::move(sequence->request.format_job);
    if (job == nullptr) job = CompileFormat(format, sequence->output());
    sequence->awaits_constraint = true;
    compiling_.push_back({sequence->request.id, sequence->serial, std::move(job)});
  }
  return sequence;
}

std::shared_ptr<FormatJob> Engine::CompileFormat(std::shared_ptr<const OutputFormat> format,
                                                 absl::Span<const TokenId> output) {
  if (formats_ == nullptr) formats_ = std::make_unique<FormatThread>(*checkpoint_);
  return formats_->Start(std::move(format), {output.begin(), output.end()});
}

void Engine::TakeConstraints(std::vector<SequenceEvent>& events) {
  for (size_t i = 0; i < compiling_.size();) {
    std::optional<FormatJob::Result> result = compiling_[i].job->TakeResult();
    if (!result.has_value()) {
      ++i;
      continue;
    }
    const Compiling done = std::move(compiling_[i]);
    compiling_.erase(compiling_.begin() + i);
    Sequence& sequence = *scheduler_.Find(done.id);
    absl::Status status = result->status();
    if (status.ok()) {
      sequence.constraint = **std::move(result);
      sequence.awaits_constraint = false;
      status = sequence.constraint->Accept(sequence.output().subspan(done.job->output().size()));
    }
    if (!status.ok()) events.push_back(Fail(done.id, status));
  }
}

absl::Status Engine::AddWithKv(SequenceRequest request, std::vector<PageIndex> pages) {
  RETURN_IF_ERROR(CheckRequest(request));
  std::unique_ptr<Sequence> sequence = MakeSequence(std::move(request));
  sequence->first_scheduled = sequence->arrival;
  sequence->computed_tokens = sequence->num_tokens() - 1;
  sequence->pages = std::move(pages);
  for (PageIndex page : sequence->pages) cache_.pool().SetState(page, PageState::kInUse);
  Publish(*sequence);
  scheduler_.AddRunning(std::move(sequence));
  return absl::OkStatus();
}

void Engine::Publish(Sequence& sequence) {
  const int tokens = std::min(sequence.computed_tokens, sequence.known_tokens());
  const int full_pages = tokens / layout_.page_tokens;
  if (full_pages <= sequence.published_pages) return;
  sequence.page_chain = cache_.Publish(absl::MakeConstSpan(sequence.tokens()).subspan(0, tokens), sequence.pages,
                                       sequence.published_pages, sequence.page_chain);
  sequence.published_pages = full_pages;
}

std::unique_ptr<Sequence> Engine::TakeOut(RequestId id) {
  std::unique_ptr<Sequence> sequence = scheduler_.Remove(id);
  if (sequence != nullptr && sequence->awaits_constraint) {
    std::erase_if(compiling_, [&](const Compiling& waiting) { return waiting.serial == sequence->serial; });
  }
  return sequence;
}

bool Engine::Cancel(RequestId id) {
  std::unique_ptr<Sequence> sequence = TakeOut(id);
  if (sequence == nullptr) {
    auto held = held_.find(id);
    if (held == held_.end()) return false;
    sequence = std::move(held->second);
    held_.erase(held);
  }
  Free(std::move(sequence->pages));
  return true;
}

void Engine::Free(std::vector<PageIndex> pages) {
  if (in_flight_.empty()) {
    cache_.Release(pages);
  } else {
    in_flight_.back().freed_pages.push_back(std::move(pages));
  }
}

void Engine::StopAndHold(RequestId id) {
  if (std::unique_ptr<Sequence> sequence = TakeOut(id); sequence != nullptr) held_[id] = std::move(sequence);
}

const Sequence* Engine::FindSequence(RequestId id) const {
  if (const Sequence* sequence = scheduler_.Find(id); sequence != nullptr) return sequence;
  auto held = held_.find(id);
  return held == held_.end() ? nullptr : held->second.get();
}

int Engine::ComputedTokens(RequestId id) const {
  const Sequence* sequence = FindSequence(id);
  return sequence == nullptr ? 0 : sequence->computed_tokens;
}

absl::Span<const PageIndex> Engine::PagesOf(RequestId id) const {
  const Sequence* sequence = FindSequence(id);
  return sequence == nullptr ? absl::Span<const PageIndex>() : absl::MakeConstSpan(sequence->pages);
}

void Engine::ReportCachedPrefixes(absl::Span<const StepItem> items,
                                  const std::function<void(const KvProgress&)>& progress) {
  for (const StepItem& item : items) {
    Sequence& sequence = *item.sequence;
    if (!sequence.request.hold_after_first_token || std::exchange(sequence.prefix_reported, true)) continue;
    if (progress)
      progress({sequence.request.id, 0, sequence.computed_tokens, 0, layout_.num_layers, ops_->MarkProgress()});
  }
}

void Engine::EndEarly(RequestId id) {
  // The pages of one that is being pushed are freed by its owner, when the push is over.
  if (scheduler_.Find(id)->request.hold_after_first_token) {
    StopAndHold(id);
  } else {
    Cancel(id);
  }
}

void Engine::FailExpired(std::vector<SequenceEvent>& events) {
  for (RequestId id : scheduler_.Expired(clock_.Now())) {
    events.push_back(Fail(id, absl::DeadlineExceededError("deadline passed on the worker")));
  }
}

StepBatch Engine::BuildBatch(absl::Span<const StepItem> items) const {
  StepBatch batch;
  for (const StepItem& item : items) {
    const Sequence& sequence = *item.sequence;
    BatchSequence part{.first_row = batch.rows(),
                       .num_rows = item.num_tokens,
                       .context_tokens = sequence.computed_tokens + item.num_tokens,
                       .pages = sequence.pages};
    for (int i = 0; i < item.num_tokens; ++i) {
      batch.tokens.push_back(sequence.tokens()[sequence.computed_tokens + i]);
      batch.positions.push_back(sequence.computed_tokens + i);
    }
    if (part.context_tokens == sequence.num_tokens()) batch.logit_rows.push_back(batch.rows() - 1);
    batch.sequences.push_back(part);
  }
  return batch;
}

std::vector<SequenceEvent> Engine::Step(const std::function<void(const KvProgress&)>& progress) {
  std::vector<SequenceEvent> events;
  FailExpired(events);
  TakeConstraints(events);
  // Whoever is preempted must not be in flight: its pages would change hands under a step that writes to them.
  if (cache_.pool().available() < scheduler_.num_running()) {
    while (!in_flight_.empty()) Collect(events);
  }
  std::vector<StepItem> items = scheduler_.Plan(clock_.Now());
  // Single rows first, and chunks behind them: devices have kernels for each.
  std::stable_partition(items.begin(), items.end(), [](const StepItem& item) { return item.num_tokens == 1; });
  const bool runs_ahead = !items.empty() && Launch(items, progress) && options_.run_ahead;
  const size_t left = runs_ahead ? 1 : 0;
  while (in_flight_.size() > left) Collect(events);
  return events;
}

bool Engine::Launch(absl::Span<const StepItem> items, const std::function<void(const KvProgress&)>& progress) {
  ReportCachedPrefixes(items, progress);
  const StepBatch batch = BuildBatch(items);
  const int group_layers = (layout_.num_layers + options_.layer_groups - 1) / options_.layer_groups;
  const auto layers_done = [&](int begin_layer, int end_layer) {
    std::shared_ptr<const SourceEvent> ready;
    for (const StepItem& item : items) {
      if (!item.sequence->request.hold_after_first_token || !progress) continue;
      if (ready == nullptr) ready = ops_->MarkProgress();
      progress({item.sequence->request.id, item.sequence->computed_tokens,
                item.sequence->computed_tokens + item.num_tokens, begin_layer, end_layer, ready});
    }
  };
  const Activation& logits = Forward(batch, /*samples=*/true, group_layers, layers_done);
  return LaunchSamples(items, logits);
}

const Activation& Engine::Forward(const StepBatch& batch, bool samples, int group_layers, LayersDone layers_done) {
  ++num_steps_;
  if (options_.ranks != nullptr) {
    const absl::Status status = options_.ranks->Broadcast(EncodeStepPlan(batch, samples));
    if (!status.ok()) RankGroup::EndProcess(status);
  }
  return model_->Forward(batch, {layout_, kv_base_}, group_layers, layers_done);
}

absl::Status Engine::Follow() {
  while (true) {
    ASSIGN_OR_RETURN(const std::optional<std::string> text, options_.ranks->Receive());
    if (!text.has_value()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const StepPlan plan, DecodeStepPlan(*text));
    model_->Forward(plan.batch, {layout_, kv_base_}, layout_.num_layers, [](int, int) {});
    ++num_steps_;
    const int samples = static_cast<int>(plan.batch.logit_rows.size());
    if (plan.samples && samples > 0) ops_->ShareSamples(samples);
  }
}

bool Engine::LaunchSamples(absl::Span<const StepItem> items, const Activation& logits) {
  PendingStep step;
  bool samples_ahead = true;
  std::vector<Sequence*> sampled;
  std::vector<SampleInput> inputs;
  std::vector<std::vector<TokenId>> forbidden;
  forbidden.reserve(items.size());
  for (const StepItem& item : items) {
    Sequence& sequence = *item.sequence;
    sequence.computed_tokens += item.num_tokens;
    Publish(sequence);
    if (sequence.computed_tokens != sequence.num_tokens()) continue;
    forbidden.push_back(ForbiddenTokens(sequence));
    sampled.push_back(&sequence);
    step.samples.push_back({sequence.request.id, sequence.serial, sequence.num_tokens()});
    absl::Span<const uint32_t> allowed;
    if (sequence.constraint != nullptr) {
      if (auto mask = sequence.constraint->Allowed(); mask.ok()) {
        allowed = *mask;
        if (!LeavesAny(allowed, forbidden.back())) forbidden.back().clear();
      } else {
        step.samples.back().error = mask.status();
      }
    }
    inputs.push_back({&sequence.request.sampling, sequence.prompt(), sequence.output(), forbidden.back(), allowed});
    samples_ahead &= ops_->SamplesAhead(sequence.request.sampling);
  }
  ops_->StartSample(logits, inputs);
  if (options_.ranks != nullptr && !inputs.empty()) ops_->ShareSamples(static_cast<int>(inputs.size()));
  for (size_t i = 0; i < sampled.size(); ++i) {
    Sequence& sequence = *sampled[i];
    const int token_index = sequence.num_tokens();
    sequence.tokens().push_back(UnknownToken(static_cast<int>(i)));
    ++sequence.unknown_tokens;
    sequence.is_closing = sequence.request.hold_after_first_token || IsAtLimit(sequence, token_index);
  }
  in_flight_.push_back(std::move(step));
  return samples_ahead;
}

void Engine::Collect(std::vector<SequenceEvent>& events) {
  std::vector<SampledToken> tokens = ops_->CollectSamples();
  PendingStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  for (const std::vector<PageIndex>& pages : step.freed_pages) cache_.Release(pages);
  for (size_t i = 0; i < step.samples.size(); ++i) {
    const PendingSample& sample = step.samples[i];
    Sequence* sequence = scheduler_.Find(sample.id);
    if (sequence == nullptr || sequence->serial != sample.serial) continue;  // It ended meanwhile.
    events.push_back(sample.error.ok() ? Advance(*sequence, sample.token_index, std::move(tokens[i]))
                                       : Fail(sample.id, sample.error));
  }
}

std::vector<TokenId> Engine::ForbiddenTokens(const Sequence& sequence) const {
  std::vector<TokenId> tokens;
  const SamplingParams& sampling = sequence.request.sampling;
  if (static_cast<int>(sequence.output().size()) >= sampling.min_tokens) return tokens;
  const std::vector<int32_t>& eos = model_config().eos_tokens;
  tokens = sampling.stop_token_ids;
  if (sampling.format == nullptr) {
    tokens.insert(tokens.end(), eos.begin(), eos.end());
  } else {
    // The format says where the answer ends; it may leave nothing else.
    std::erase_if(tokens, [&](TokenId token) { return std::find(eos.begin(), eos.end(), token) != eos.end(); });
  }
  return tokens;
}

bool Engine::IsAtLimit(const Sequence& sequence, int token_index) const {
  const int output = token_index + 1 - sequence.request.prompt_tokens;
  const int max_tokens = sequence.request.sampling.max_tokens;
  return (max_tokens > 0 && output >= max_tokens) || token_index + 1 >= max_context_tokens_;
}

FinishReason Engine::CheckFinish(const Sequence& sequence, int token_index, TokenId token) const {
  const SamplingParams& sampling = sequence.request.sampling;
  const auto& eos = model_config().eos_tokens;
  const bool heeds_eos = !sampling.ignore_eos || sampling.format != nullptr;
  if (heeds_eos && std::find(eos.begin(), eos.end(), token) != eos.end()) return FinishReason::kStop;
  const auto& stops = sampling.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return FinishReason::kStop;
  return IsAtLimit(sequence, token_index) ? FinishReason::kLength : FinishReason::kNone;
}

SequenceEvent Engine::Fail(RequestId id, absl::Status error) {
  EndEarly(id);
  return {.id = id, .error = std::move(error)};
}

SequenceEvent Engine::Advance(Sequence& sequence, int token_index, SampledToken token) {
  const RequestId id = sequence.request.id;
  if (!token.valid) {
    return Fail(
        id, MakeError(absl::StatusCode::kInternal, ErrorReason::kEngineFailed, "the model's logits are no numbers"));
  }
  SequenceEvent event{.id = id, .finish = CheckFinish(sequence, token_index, token.token)};
  if (sequence.constraint != nullptr && event.finish == FinishReason::kNone) {
    if (absl::Status status = sequence.constraint->Accept({token.token}); !status.ok()) return Fail(id, status);
  }
  if (sequence.cached_tokens >= 0) {  // Told once.
    event.first_token = true;
    event.cached_tokens = sequence.cached_tokens;
    event.queue_time = sequence.first_scheduled - sequence.arrival;
    event.prefill_time = clock_.Now() - sequence.first_scheduled;
    sequence.cached_tokens = -1;
  }
  sequence.tokens()[token_index] = token.token;
  --sequence.unknown_tokens;
  Publish(sequence);
  if (event.finish != FinishReason::kStop) event.token = std::move(token);
  if (event.finish != FinishReason::kNone && !sequence.request.hold_after_first_token) {
    Cancel(id);
  } else if (sequence.request.hold_after_first_token) {
    held_[id] = scheduler_.Remove(id);
  }
  return event;
}

absl::StatusOr<std::vector<std::vector<float>>> Engine::ScoreAll(absl::Span<const TokenId> tokens) {
  if (HasWork() || num_held() > 0) return absl::FailedPreconditionError("the engine is not idle");
  auto pages = cache_.Allocate(cache_.PagesFor(tokens.size()));
  if (!pages.has_value()) return absl::ResourceExhaustedError("too few pages");
  std::vector<std::vector<float>> scores;
  for (size_t i = 0; i < tokens.size(); ++i) {
    StepBatch batch;
    batch.tokens = {tokens[i]};
    batch.positions = {static_cast<int32_t>(i)};
    batch.logit_rows = {0};
    batch.sequences = {{.first_row = 0, .num_rows = 1, .context_tokens = static_cast<int>(i) + 1, .pages = *pages}};
    const Activation& logits = Forward(batch, /*samples=*/false, layout_.num_layers, [](int, int) {});
    SamplingParams all;
    all.logprobs = model_config().vocab_size;
    ops_->StartSample(logits, {{.params = &all}});
    std::vector<SampledToken> sampled = ops_->CollectSamples();
    std::vector<float> row(model_config().vocab_size);
    for (const TokenLogprob& entry : sampled[0].top) row[entry.token] = entry.logprob;
    scores.push_back(std::move(row));
  }
  cache_.Release(*pages);
  return scores;
}

}  // namespace tandem
