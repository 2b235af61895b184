#include "kvtransfer/ucx/staged_export.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/log.h"
#include "common/status_macros.h"

namespace tandem {

StagedExport::StagedExport(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options, uint8_t* base,
                           uint64_t size_bytes)
    : UcxWorker(std::move(context)),
      memory_(*options.memory),
      place_(options.place),
      on_device_(memory_.is_device() && options.place == PoolMemory::Place::kPool),
      base_(base),
      size_bytes_(size_bytes),
      chunk_bytes_(options.chunk_bytes),
      chunks_(options.buffers) {}

StagedExport::~StagedExport() {
  if (!is_started()) return;
  DropStagedMessages(worker());
  for (Chunk& chunk : chunks_) {
    for (Part* part : {&chunk.runs_part, &chunk.data_part}) {
      if (part->descriptor != nullptr) ucp_am_data_release(worker(), part->descriptor);
    }
  }
  std::vector<ucs_status_ptr_t> answers;
  for (StagedRequest& answer : answers_) {
    if (ucs_status_ptr_t request = answer.Take(); request != nullptr) answers.push_back(request);
  }
  Close(endpoint_, std::move(answers));
  // What is being received cannot be called back; it ends with the worker, before the buffers do.
  for (Chunk& chunk : chunks_) {
    chunk.runs_part.request = StagedRequest();
    chunk.data_part.request = StagedRequest();
  }
  DestroyWorker();
  for (Chunk& chunk : chunks_) {
    if (chunk.scatter != nullptr) chunk.scatter->Wait();
  }
}

absl::Status StagedExport::Start(absl::string_view transport) {
  RETURN_IF_ERROR(CreateWorker());
  RETURN_IF_ERROR(TakeStagedMessages(worker(), &StagedExport::OnMessage, this));
  description_.transport = std::string(transport);
  ASSIGN_OR_RETURN(description_.address, Address());
  const StagedLimits limits = {chunk_bytes_, chunks_.size()};
  description_.remote_key.assign(reinterpret_cast<const char*>(&limits), sizeof(limits));
  description_.size_bytes = size_bytes_;
  return absl::OkStatus();
}

void StagedExport::Progress() {
  UcxWorker::Progress();
  for (Chunk& chunk : chunks_) {
    if (!chunk.is_used || !error_.ok()) continue;
    const absl::StatusOr<bool> ended = Advance(chunk);
    if (!ended.ok()) {
      Fail(chunk.number, ended.status());
    } else if (*ended) {
      Answer(StagedHeader::Kind::kScattered, chunk.number);
      chunk = Chunk{.buffer = std::move(chunk.buffer), .runs = std::move(chunk.runs)};
    }
  }
  // An answer that fails is the endpoint's failure, which both sides hear of.
  while (!answers_.empty()) {
    const absl::StatusOr<bool> ended = answers_.front().PollEnded();
    if (ended.ok() && !*ended) break;
    answers_.pop_front();
  }
}

bool StagedExport::PrepareToSleep() {
  const bool must_poll =
      error_.ok() && std::any_of(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) { return chunk.must_poll; });
  return UcxWorker::PrepareToSleep() && !must_poll;
}

ucs_status_t StagedExport::OnMessage(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                     const ucp_am_recv_param_t* param) {
  StagedHeader message;
  if (header_bytes != sizeof(message)) return UCS_OK;
  std::memcpy(&message, header, sizeof(message));
  const bool is_there = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0;
  return static_cast<StagedExport*>(self)->Take(message, data, bytes, is_there);
}

ucs_status_t StagedExport::Take(const StagedHeader& header, void* data, size_t bytes, bool is_there) {
  if (!error_.ok()) return UCS_OK;
  if (header.kind == StagedHeader::Kind::kAddress && endpoint_ == nullptr && is_there && bytes > 0) {
    absl::StatusOr<ucp_ep_h> endpoint = Connect(std::string(static_cast<const char*>(data), bytes), &error_);
    if (endpoint.ok()) {
      endpoint_ = *endpoint;
    } else {
      error_ = endpoint.status();
    }
    return UCS_OK;
  }
  const bool is_runs = header.kind == StagedHeader::Kind::kRuns && bytes % sizeof(ChunkRun) == 0 &&
                       bytes <= kMaxRunsOfChunk * sizeof(ChunkRun);
  const bool is_data = header.kind == StagedHeader::Kind::kData && bytes <= chunk_bytes_;
  Chunk* chunk = endpoint_ != nullptr && (is_runs || is_data) ? FindChunk(header.chunk) : nullptr;
  Part* part = chunk == nullptr ? nullptr : is_runs ? &chunk->runs_part : &chunk->data_part;
  if (part == nullptr || part->has_come) {
    Fail(header.chunk, absl::InvalidArgumentError("it is more than was offered room, or not understood"));
    return UCS_OK;
  }
  part->has_come = true;
  part->descriptor = data;
  part->bytes = bytes;
  return UCS_INPROGRESS;
}

StagedExport::Chunk* StagedExport::FindChunk(uint64_t number) {
  for (Chunk& chunk : chunks_) {
    if (chunk.is_used && chunk.number == number) return &chunk;
  }
  for (Chunk& chunk : chunks_) {
    if (chunk.is_used) continue;
    chunk.is_used = true;
    chunk.number = number;
    return &chunk;
  }
  return nullptr;
}

absl::StatusOr<bool> StagedExport::Advance(Chunk& chunk) {
  chunk.must_poll = false;
  if (chunk.buffer == nullptr) {
    ASSIGN_OR_RETURN(chunk.buffer, memory_.Allocate(chunk_bytes_, place_));
  }
  if (chunk.runs_part.descriptor != nullptr) chunk.runs.resize(chunk.runs_part.bytes / sizeof(ChunkRun));
  ASSIGN_OR_RETURN(const bool has_runs, Receive(chunk.runs_part, chunk.runs.data(), /*on_device=*/false));
  ASSIGN_OR_RETURN(const bool has_data, Receive(chunk.data_part, chunk.buffer->base(), on_device_));
  if (!has_runs || !has_data) return false;
  return Scatter(chunk);
}

absl::StatusOr<bool> StagedExport::Receive(Part& part, void* to, bool on_device) {
  if (part.is_complete || !part.has_come) return part.is_complete;
  if (part.descriptor != nullptr) {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    param.memory_type = on_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
    RETURN_IF_ERROR(part.request.Begin(
        ucp_am_recv_data_nbx(worker(), std::exchange(part.descriptor, nullptr), to, part.bytes, &param),
        "ucp_am_recv_data_nbx"));
  }
  ASSIGN_OR_RETURN(part.is_complete, part.request.PollEnded());
  return part.is_complete;
}

absl::StatusOr<bool> StagedExport::Scatter(Chunk& chunk) {
  if (chunk.scatter == nullptr) {
    std::vector<CopyRun> runs;
    runs.reserve(chunk.runs.size());
    int64_t at = 0;
    for (const ChunkRun& run : chunk.runs) {
      if (run.bytes < 0 || run.bytes > static_cast<int64_t>(chunk.data_part.bytes) - at) {
        return absl::InvalidArgumentError("its runs are longer than its data");
      }
      runs.push_back({at, run.destination, run.bytes});
      at += run.bytes;
    }
    RETURN_IF_ERROR(CheckRuns(runs, size_bytes_));
    absl::StatusOr<std::unique_ptr<PendingCopy>> copy = memory_.StartCopy(chunk.buffer->base(), base_, runs);
    chunk.must_poll = absl::IsUnavailable(copy.status());
    if (chunk.must_poll) return false;
    RETURN_IF_ERROR(copy.status());
    chunk.scatter = *std::move(copy);
  }
  ASSIGN_OR_RETURN(const bool ended, chunk.scatter->PollEnded());
  chunk.must_poll = !ended;
  return ended;
}

void StagedExport::Answer(StagedHeader::Kind kind, uint64_t chunk) {
  // The endpoint of a writer that is gone is UCX's no more.
  if (endpoint_ == nullptr || !error_.ok()) return;
  StagedRequest request;
  if (SendStaged(endpoint_, {.kind = kind, .chunk = chunk}, nullptr, 0, false, request).ok()) {
    answers_.push_back(std::move(request));
  }
}

void StagedExport::Fail(uint64_t chunk, const absl::Status& cause) {
  if (!error_.ok()) return;  // The writer went first.
  LogWarning("chunk not taken", {{"chunk", chunk}, {"cause", cause.message()}});
  Answer(StagedHeader::Kind::kRefused, chunk);
  error_ = cause;
}

}  // namespace tandem
