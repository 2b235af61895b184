#include "kvtransfer/nvlink/page_copier.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/copy_list.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/current_device.h"
#include "kvtransfer/nvlink/driver_function.h"

namespace tandem {
namespace {

// OUT_OF_RANGE unless runs that end there, from the push's offsets, lie in the pools.
absl::Status CheckPlaces(const PageCopier::Push& push, uint64_t source_end, uint64_t destination_end) {
  auto fits = [](const auto& place, uint64_t end) { return end <= place.bytes && place.offset <= place.bytes - end; };
  if (fits(push.source, source_end) && fits(push.destination, destination_end)) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("runs that end at ", source_end, " and ", destination_end,
                                            " leave pools of ", push.source.bytes, " and ", push.destination.bytes,
                                            " bytes from ", push.source.offset, " and ", push.destination.offset));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PageCopier>> PageCopier::Create(const Options& options) {
  const CurrentDevice current(options.device);
  RETURN_IF_ERROR(current.status());
  std::unique_ptr<PageCopier> copier(new PageCopier(options));
  RETURN_IF_ERROR(FindDriverFunction("cuStreamWriteValue32", &copier->write_flag_));
  copier->slots_.reserve(options.max_lists);
  for (int i = 0; i < options.max_lists; ++i) RETURN_IF_ERROR(copier->AddSlot());
  // The counters were zeroed on a stream for which others do not wait.
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(cudaStreamPerThread), "cudaStreamSynchronize"));
  return copier;
}

PageCopier::~PageCopier() {
  const CurrentDevice current(options_.device);
  for (Slot& slot : slots_) {
    if (slot.ended != nullptr) {
      cudaEventSynchronize(slot.ended);
      cudaEventDestroy(slot.ended);
    }
    cudaFreeHost(slot.host);
    cudaFree(slot.device);
    cudaFree(slot.finished_blocks);
    cudaFreeHost(slot.host_sums);
    cudaFree(slot.device_sums);
  }
}

absl::Status PageCopier::AddSlot() {
  const size_t bytes = pages_offset() + options_.max_runs * sizeof(uint32_t);
  const size_t sums_bytes = options_.max_runs * sizeof(uint64_t);
  Slot& slot = slots_.emplace_back();  // The destructor frees what was made of it.
  RETURN_IF_ERROR(CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&slot.host), bytes), "cudaMallocHost"));
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&slot.device), bytes), "cudaMalloc"));
  RETURN_IF_ERROR(CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&slot.host_sums), sums_bytes), "cudaMallocHost"));
  RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&slot.device_sums), sums_bytes), "cudaMalloc"));
  RETURN_IF_ERROR(
      CudaStatus(cudaMalloc(reinterpret_cast<void**>(&slot.finished_blocks), sizeof(uint32_t)), "cudaMalloc"));
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(slot.finished_blocks, 0, sizeof(uint32_t), cudaStreamPerThread), "cudaMemsetAsync"));
  return CudaStatus(cudaEventCreateWithFlags(&slot.ended, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

absl::StatusOr<PageCopier::Slot*> PageCopier::FindSlot() {
  for (Slot& slot : slots_) {
    if (slot.is_held) continue;
    ASSIGN_OR_RETURN(const bool is_free, IsOver(slot.ended));
    if (is_free) return &slot;
  }
  return absl::UnavailableError(absl::StrCat(options_.max_lists, " copy lists are in use"));
}

absl::StatusOr<PageCopier::List> PageCopier::Upload(absl::Span<const CopyRun> runs, cudaStream_t stream,
                                                    absl::Span<const uint32_t> page_of_run) {
  if (runs.size() > options_.max_runs) {
    return absl::OutOfRangeError(absl::StrCat("a list of ", runs.size(), " runs; at most ", options_.max_runs, " fit"));
  }
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  ASSIGN_OR_RETURN(Slot * slot, FindSlot());
  slot->stream = stream;
  ASSIGN_OR_RETURN(slot->shape, PackRuns(runs, reinterpret_cast<DeviceRun*>(slot->host),
                                         reinterpret_cast<DeviceExtent*>(slot->host + extents_offset())));
  slot->num_pages = page_of_run.empty() ? 0 : *std::max_element(page_of_run.begin(), page_of_run.end()) + 1;
  if (slot->num_pages > options_.max_runs) {
    return absl::OutOfRangeError(absl::StrCat("a list for ", slot->num_pages, " pages; at most ", options_.max_runs));
  }
  slot->goes_with_launch = slot->shape.uniform_vectors > 0 && runs.size() <= kLaunchRuns && slot->num_pages == 0;
  if (slot->goes_with_launch) return List(slot);
  auto upload = [&](size_t offset, size_t bytes) {
    return CudaStatus(
        cudaMemcpyAsync(slot->device + offset, slot->host + offset, bytes, cudaMemcpyHostToDevice, stream),
        "cudaMemcpyAsync");
  };
  RETURN_IF_ERROR(upload(0, runs.size() * sizeof(DeviceRun)));
  if (slot->shape.uniform_vectors == 0) RETURN_IF_ERROR(upload(extents_offset(), runs.size() * sizeof(DeviceExtent)));
  if (slot->num_pages > 0) {
    std::copy(page_of_run.begin(), page_of_run.end(), reinterpret_cast<uint32_t*>(slot->host + pages_offset()));
    RETURN_IF_ERROR(upload(pages_offset(), runs.size() * sizeof(uint32_t)));
  }
  RETURN_IF_ERROR(CudaStatus(cudaEventRecord(slot->ended, stream), "cudaEventRecord"));
  return List(slot);
}

absl::Status PageCopier::Enqueue(const List& list, const Push& push, int blocks) {
  Slot& slot = *list.slot_;
  const CopyShape& shape = slot.shape;
  if ((push.source.offset | push.destination.offset) % sizeof(uint4) != 0) {
    return absl::InvalidArgumentError("pushes must begin at multiples of 16 bytes");
  }
  RETURN_IF_ERROR(CheckPlaces(push, shape.source_end, shape.destination_end));
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  PageCopyArguments arguments = Arguments(slot);
  arguments.source = push.source.base + push.source.offset;
  arguments.destination = push.destination.base + push.destination.offset;
  arguments.destination_offset = push.destination.offset;
  arguments.flag = push.flag;
  arguments.flag_value = push.flag_value;
  return Launch(slot, arguments, blocks);
}

absl::Status PageCopier::EnqueueSums(const List& list, PoolSide side, const Place<const uint8_t>& pool,
                                     uint64_t destination_offset, int blocks) {
  Slot& slot = *list.slot_;
  const bool at_source = side == PoolSide::kSource;
  if (slot.num_pages == 0 || pool.offset % sizeof(uint4) != 0) {
    return absl::InvalidArgumentError("sums are those of pages, at multiples of 16 bytes");
  }
  const uint64_t end = at_source ? slot.shape.source_end : slot.shape.destination_end;
  if (end > pool.bytes || pool.offset > pool.bytes - end) {
    return absl::OutOfRangeError(absl::StrCat("runs that end at ", end, " leave a pool of ", pool.bytes, " bytes"));
  }
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  PageCopyArguments arguments = Arguments(slot);
  arguments.source = pool.base + pool.offset;
  if (!at_source) arguments.destination = const_cast<uint8_t*>(pool.base + pool.offset);  // It is not written to.
  arguments.destination_offset = destination_offset;
  arguments.work = at_source ? PageCopyWork::kSumSource : PageCopyWork::kSumDestination;
  return Launch(slot, arguments, blocks);
}

PageCopyArguments PageCopier::Arguments(const Slot& slot) const {
  PageCopyArguments arguments;
  arguments.runs = reinterpret_cast<const DeviceRun*>(slot.device);
  arguments.extents = reinterpret_cast<const DeviceExtent*>(slot.device + extents_offset());
  arguments.shape = slot.shape;
  arguments.finished_blocks = slot.finished_blocks;
  if (slot.num_pages > 0) {
    arguments.sums = slot.device_sums;
    arguments.page_of_run = reinterpret_cast<const uint32_t*>(slot.device + pages_offset());
  }
  return arguments;
}

absl::Status PageCopier::Launch(Slot& slot, const PageCopyArguments& arguments, int blocks) {
  const size_t sums_bytes = slot.num_pages * sizeof(uint64_t);
  if (sums_bytes > 0) {
    RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(slot.device_sums, 0, sums_bytes, slot.stream), "cudaMemsetAsync"));
  }
  const auto* launch_runs = slot.goes_with_launch ? reinterpret_cast<const DeviceRun*>(slot.host) : nullptr;
  RETURN_IF_ERROR(CudaStatus(LaunchPageCopy(arguments, launch_runs, blocks, slot.stream), "page copy"));
  if (sums_bytes > 0) {
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(slot.host_sums, slot.device_sums, sums_bytes, cudaMemcpyDeviceToHost, slot.stream),
                   "cudaMemcpyAsync"));
  }
  return CudaStatus(cudaEventRecord(slot.ended, slot.stream), "cudaEventRecord");
}

absl::StatusOr<bool> PageCopier::PollEnded(const List& list) {
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  return IsOver(list.slot_->ended);
}

absl::Status PageCopier::EnqueueCopyEngine(absl::Span<const CopyRun> runs, const Push& push, cudaStream_t stream) {
  engine_sources_.clear();
  engine_destinations_.clear();
  engine_sizes_.clear();
  uint64_t source_end = 0, destination_end = 0;
  for (const CopyRun& run : runs) {
    if (run.source < 0 || run.destination < 0 || run.bytes < 0) {
      return absl::InvalidArgumentError("runs must begin at 0 or later");
    }
    source_end = std::max(source_end, static_cast<uint64_t>(run.source) + run.bytes);
    destination_end = std::max(destination_end, static_cast<uint64_t>(run.destination) + run.bytes);
    if (run.bytes == 0) continue;
    engine_sources_.push_back(const_cast<uint8_t*>(push.source.base + push.source.offset + run.source));
    engine_destinations_.push_back(push.destination.base + push.destination.offset + run.destination);
    engine_sizes_.push_back(run.bytes);
  }
  RETURN_IF_ERROR(CheckPlaces(push, source_end, destination_end));
  const CurrentDevice current(options_.device);
  RETURN_IF_ERROR(current.status());
  if (engine_sizes_.size() == 1) {
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(engine_destinations_[0], engine_sources_[0], engine_sizes_[0], cudaMemcpyDefault, stream),
        "cudaMemcpyAsync"));
  } else if (!engine_sizes_.empty()) {
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first = 0;
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyBatchAsync(engine_destinations_.data(), engine_sources_.data(), engine_sizes_.data(),
                                        engine_sizes_.size(), &attributes, &first, 1, stream),
                   "cudaMemcpyBatchAsync"));
  }
  if (push.flag == nullptr) return absl::OkStatus();
  // Waits for the copies, and orders its write after theirs for all who read the flag.
  return CudaStatus(
      write_flag_(stream, reinterpret_cast<CUdeviceptr>(push.flag), push.flag_value, CU_STREAM_WRITE_VALUE_DEFAULT),
      "cuStreamWriteValue32");
}

}  // namespace tandem
