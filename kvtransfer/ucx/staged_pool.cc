#include "kvtransfer/ucx/staged_pool.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/status_macros.h"

namespace tandem {

StagedPool::StagedPool(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options, const PoolExport& pool,
                       const StagedLimits& limits)
    : UcxWorker(std::move(context)),
      memory_(*options.memory),
      place_(options.place),
      on_device_(memory_.is_device() && options.place == PoolMemory::Place::kPool),
      size_bytes_(pool.size_bytes),
      chunk_bytes_(std::min(options.chunk_bytes, limits.chunk_bytes) / 16 * 16),
      chunks_(std::min<uint64_t>(options.buffers, limits.buffers)) {}

StagedPool::~StagedPool() {
  if (!is_started()) return;
  DropStagedMessages(worker());
  std::vector<ucs_status_ptr_t> requests;
  auto take = [&](StagedRequest& request) {
    if (ucs_status_ptr_t taken = request.Take(); taken != nullptr) requests.push_back(taken);
  };
  take(address_request_);
  for (Chunk& chunk : chunks_) {
    take(chunk.runs_request);
    take(chunk.data_request);
  }
  Close(endpoint_, std::move(requests));
  DestroyWorker();
  for (Chunk& chunk : chunks_) {
    if (chunk.gather != nullptr) chunk.gather->Wait();
  }
}

absl::Status StagedPool::Start(const std::string& address) {
  RETURN_IF_ERROR(CreateWorker());
  RETURN_IF_ERROR(TakeStagedMessages(worker(), &StagedPool::OnMessage, this));
  ASSIGN_OR_RETURN(endpoint_, Connect(address, &error_));
  ASSIGN_OR_RETURN(own_address_, Address());
  return SendStaged(endpoint_, {.kind = StagedHeader::Kind::kAddress}, own_address_.data(), own_address_.size(), false,
                    address_request_);
}

absl::Status StagedPool::Write(WriteOrder order) {
  RETURN_IF_ERROR(error_);
  RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
  RETURN_IF_ERROR(AddSums(memory_, order));
  for (const CopyRun& run : order.runs) {
    if (run.bytes > 0) waiting_.push_back({order.source_base, run});
  }
  AdvanceAll();
  return error_;
}

absl::StatusOr<bool> StagedPool::PollFlushed() {
  Progress();
  RETURN_IF_ERROR(error_);
  return waiting_.empty() &&
         std::all_of(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) { return chunk.state == State::kFree; });
}

void StagedPool::Progress() {
  UcxWorker::Progress();
  AdvanceAll();
}

bool StagedPool::PrepareToSleep() {
  // Nothing tells when a copy has ended, or when one that was put off may begin.
  const bool must_poll =
      error_.ok() && std::any_of(chunks_.begin(), chunks_.end(), [this](const Chunk& chunk) {
        return chunk.state == State::kGathering || (chunk.state == State::kFree && !waiting_.empty());
      });
  return UcxWorker::PrepareToSleep() && !must_poll;
}

ucs_status_t StagedPool::OnMessage(void* self, const void* header, size_t header_bytes, void*, size_t,
                                   const ucp_am_recv_param_t*) {
  auto& pool = *static_cast<StagedPool*>(self);
  StagedHeader message;
  if (header_bytes != sizeof(message)) return UCS_OK;
  std::memcpy(&message, header, sizeof(message));
  if (message.kind == StagedHeader::Kind::kRefused && pool.error_.ok()) {
    pool.error_ = absl::UnavailableError("the peer did not take a chunk");
  }
  for (Chunk& chunk : pool.chunks_) {
    const bool is_answer = chunk.state == State::kSent && chunk.number == message.chunk;
    if (is_answer && message.kind == StagedHeader::Kind::kScattered) chunk.is_scattered = true;
  }
  return UCS_OK;
}

void StagedPool::AdvanceAll() {
  for (Chunk& chunk : chunks_) {
    if (error_.ok()) error_ = Advance(chunk);
  }
}

absl::Status StagedPool::Advance(Chunk& chunk) {
  if (chunk.state == State::kSent) {
    ASSIGN_OR_RETURN(const bool runs_sent, chunk.runs_request.PollEnded());
    ASSIGN_OR_RETURN(const bool data_sent, chunk.data_request.PollEnded());
    if (runs_sent && data_sent && chunk.is_scattered) chunk.state = State::kFree;
  }
  if (chunk.state == State::kFree && !waiting_.empty()) RETURN_IF_ERROR(Gather(chunk));
  if (chunk.state == State::kGathering) {
    ASSIGN_OR_RETURN(const bool gathered, chunk.gather->PollEnded());
    if (gathered) RETURN_IF_ERROR(SendChunk(chunk));
  }
  return absl::OkStatus();
}

absl::Status StagedPool::Gather(Chunk& chunk) {
  if (chunk.buffer == nullptr) {
    ASSIGN_OR_RETURN(chunk.buffer, memory_.Allocate(chunk_bytes_, place_));
  }
  chunk.runs.clear();
  chunk.bytes = 0;
  const uint8_t* base = waiting_.front().source_base;
  std::vector<CopyRun> runs;
  int64_t left_of_last = 0;  // Of a run that is longer than the room for it.
  for (size_t i = 0; i < waiting_.size() && runs.size() < kMaxRunsOfChunk && left_of_last == 0; ++i) {
    const WaitingRun& next = waiting_[i];
    const int64_t bytes = std::min(next.run.bytes, static_cast<int64_t>(chunk_bytes_) - chunk.bytes);
    if (next.source_base != base || bytes == 0) break;
    runs.push_back({next.run.source, chunk.bytes, bytes});
    chunk.runs.push_back({next.run.destination, bytes});
    chunk.bytes += bytes;
    left_of_last = next.run.bytes - bytes;
  }
  absl::StatusOr<std::unique_ptr<PendingCopy>> copy = memory_.StartCopy(base, chunk.buffer->base(), runs);
  if (absl::IsUnavailable(copy.status())) return absl::OkStatus();  // In the next turn.
  RETURN_IF_ERROR(copy.status());
  const auto whole = static_cast<int64_t>(runs.size()) - (left_of_last > 0 ? 1 : 0);
  waiting_.erase(waiting_.begin(), waiting_.begin() + whole);
  if (left_of_last > 0) {
    CopyRun& rest = waiting_.front().run;
    const int64_t taken = rest.bytes - left_of_last;
    rest = {rest.source + taken, rest.destination + taken, left_of_last};
  }
  chunk.gather = *std::move(copy);
  chunk.state = State::kGathering;
  return absl::OkStatus();
}

absl::Status StagedPool::SendChunk(Chunk& chunk) {
  chunk.gather.reset();
  chunk.number = next_chunk_++;
  chunk.is_scattered = false;
  chunk.state = State::kSent;
  RETURN_IF_ERROR(SendStaged(endpoint_, {.kind = StagedHeader::Kind::kRuns, .chunk = chunk.number}, chunk.runs.data(),
                             chunk.runs.size() * sizeof(ChunkRun), false, chunk.runs_request));
  return SendStaged(endpoint_, {.kind = StagedHeader::Kind::kData, .chunk = chunk.number}, chunk.buffer->base(),
                    static_cast<size_t>(chunk.bytes), on_device_, chunk.data_request);
}

}  // namespace tandem
