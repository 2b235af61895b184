#include "engine/cuda/device_sampler.h"

#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/sample_kernel.h"

namespace tandem {
namespace {

constexpr size_t kSlots = 4;  // More than steps that are in flight.
constexpr absl::Duration kLongestStep = absl::Seconds(20);

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(int max_rows, cudaStream_t stream) {
  std::unique_ptr<DeviceSampler> sampler(new DeviceSampler(stream));
  constexpr DeviceMemory::Kind kDevice = DeviceMemory::Kind::kDevice, kPinned = DeviceMemory::Kind::kPinned;
  ASSIGN_OR_RETURN(sampler->tokens_, DeviceMemory::Allocate(kDevice, max_rows * sizeof(int32_t)));
  ASSIGN_OR_RETURN(sampler->staging_, StagingRing::Create(max_rows * sizeof(SampleSettings), stream));
  for (size_t i = 0; i < kSlots; ++i) {
    Slot slot;
    ASSIGN_OR_RETURN(slot.results, DeviceMemory::Allocate(kPinned, max_rows * sizeof(int32_t)));
    CheckCuda(cudaEventCreateWithFlags(&slot.arrived, cudaEventDisableTiming), "cudaEventCreate");
    sampler->slots_.push_back(std::move(slot));
  }
  return sampler;
}

DeviceSampler::~DeviceSampler() {
  for (Slot& slot : slots_) cudaEventDestroy(slot.arrived);
}

bool DeviceSampler::IsChosenOnDevice(const SamplingParams& params) {
  return !HasPenalties(params) && params.logit_bias.empty() && params.min_tokens == 0 &&
         (params.format == nullptr || !params.logprobs.has_value());
}

void DeviceSampler::ApplyFormats(float* logits, int64_t columns, absl::Span<const SampleInput> inputs) {
  const auto is_masked = [](const SampleInput& input) { return !input.allowed.empty() && IsForDevice(*input.params); };
  const size_t count = std::count_if(inputs.begin(), inputs.end(), is_masked);
  if (count == 0) return;
  const size_t mask_words = (columns + 31) / 32;
  // The step that read them last has been collected.
  if (const size_t bytes = count * (mask_words + 1) * sizeof(uint32_t); bytes > masks_capacity_) {
    absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(DeviceMemory::Kind::kPinned, 2 * bytes);
    if (!memory.ok()) CheckCuda(cudaErrorMemoryAllocation, "masks of formats");
    masks_ = *std::move(memory);
    masks_capacity_ = 2 * bytes;
  }
  auto* rows = masks_.as<int32_t>();
  uint32_t* masks = masks_.as<uint32_t>() + count;
  for (size_t i = 0, at = 0; i < inputs.size(); ++i) {
    if (!is_masked(inputs[i])) continue;
    rows[at] = static_cast<int32_t>(i);
    std::copy_n(inputs[i].allowed.begin(), std::min(mask_words, inputs[i].allowed.size()), masks + at++ * mask_words);
  }
  CheckCuda(LaunchMask(logits, static_cast<int>(columns), rows, masks, static_cast<int>(mask_words),
                       static_cast<int>(count), stream_),
            "LaunchMask");
}

void DeviceSampler::Start(float* logits, int64_t columns, absl::Span<const SampleInput> inputs) {
  Pending pending;
  pending.tokens.resize(inputs.size());
  pending.slot = std::exchange(next_slot_, (next_slot_ + 1) % kSlots);
  Slot& slot = slots_[pending.slot];
  bool all_on_device = true;
  if (!inputs.empty()) {
    auto* settings = reinterpret_cast<SampleSettings*>(staging_->Acquire());
    for (size_t i = 0; i < inputs.size(); ++i) {
      const SamplingParams& params = *inputs[i].params;
      settings[i] = {.temperature = params.temperature < kGreedyBelow ? 0 : params.temperature,
                     .top_p = params.top_p,
                     .min_p = params.min_p,
                     .top_k = params.top_k,
                     .seed = params.seed,
                     .index = inputs[i].output.size()};
      all_on_device &= IsForDevice(params);
    }
    ApplyFormats(logits, columns, inputs);
    // The kernel reads the one and writes the other where they are, in the host's memory: they are a few bytes, and
    // copies would stand between it and the kernels before and behind it.
    CheckCuda(LaunchSample(logits, static_cast<int>(inputs.size()), static_cast<int>(columns), settings,
                           tokens_.as<int32_t>(), slot.results.as<int32_t>(), stream_),
              "LaunchSample");
    staging_->Release();
  }
  CheckCuda(cudaEventRecord(slot.arrived, stream_), "cudaEventRecord");
  if (!all_on_device) {
    Complete(pending);
    SampleOnHost(logits, columns, inputs, pending);
  }
  pending_.push_back(std::move(pending));
}

void DeviceSampler::SampleOnHost(const float* logits, int64_t columns, absl::Span<const SampleInput> inputs,
                                 Pending& pending) {
  std::vector<float> row(columns);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const SamplingParams& params = *inputs[i].params;
    if (IsForDevice(params)) continue;
    CheckCuda(cudaMemcpy(row.data(), logits + i * columns, columns * sizeof(float), cudaMemcpyDeviceToHost),
              "cudaMemcpy");
    SampledToken& token = pending.tokens[i];
    if (!IsChosenOnDevice(params)) {
      token = SampleToken(absl::MakeSpan(row), inputs[i]);
    } else if (token.valid) {
      token = DescribeToken(row, token.token, *params.logprobs);
    }
  }
  // The device's own tokens stay as they are: all are collected before the next step, which is told them.
}

void DeviceSampler::Complete(Pending& pending) {
  if (std::exchange(pending.is_known, true)) return;
  AwaitEvent(slots_[pending.slot].arrived);
  const auto* results = slots_[pending.slot].results.as<const int32_t>();
  for (size_t i = 0; i < pending.tokens.size(); ++i) {
    pending.tokens[i].valid = results[i] >= 0;
    pending.tokens[i].token = std::max(0, results[i]);
  }
}

std::vector<SampledToken> DeviceSampler::Collect() {
  Pending pending = std::move(pending_.front());
  pending_.pop_front();
  Complete(pending);
  return std::move(pending.tokens);
}

void DeviceSampler::AwaitEvent(cudaEvent_t event) {
  // By asking, since a wake-up takes longer than most steps of small models.
  const absl::Time give_up = Clock::Real().Now() + kLongestStep;
  for (int asked = 1;; ++asked) {
    const cudaError_t error = cudaEventQuery(event);
    if (error == cudaSuccess) return;
    if (error != cudaErrorNotReady) CheckCuda(error, "a step on the GPU");
    if (asked % 64 != 0) continue;
    std::this_thread::yield();
    if (Clock::Real().Now() < give_up) continue;
    LogError("a step on the GPU does not end, and this worker does", {{"limit", absl::FormatDuration(kLongestStep)}});
    _exit(kGpuFailedExitCode);
  }
}

}  // namespace tandem
