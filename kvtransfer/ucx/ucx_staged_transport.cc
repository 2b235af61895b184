#include "kvtransfer/ucx/ucx_staged_transport.h"

#include <ucp/api/ucp.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvtransfer/ucx/ucx_worker.h"

namespace tandem {
namespace {

constexpr unsigned kMessageId = 1;
constexpr size_t kMaxRunsOfChunk = 16'384;

// In front of every message.
struct Header {
  enum Kind : uint32_t { kRuns, kData, kScattered, kRefused };
  Kind kind;
  uint32_t reserved;
  uint64_t chunk;  // Counts up on each link.
};
// Where a stretch of the chunk belongs, in the order in which it holds them.
struct ChunkRun {
  int64_t destination, bytes;
};
// PoolExport::remote_key.
struct Limits {
  uint64_t chunk_bytes, buffers;
};

ucp_request_param_t SendParameters(bool is_device) {
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_COPY_HEADER;
  param.memory_type = is_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  return param;
}

// A message that comes, or goes; at its end the request is freed.
class Request {
 public:
  absl::Status Begin(ucs_status_ptr_t request, absl::string_view what) {
    if (UCS_PTR_IS_ERR(request)) return UcxStatus(UCS_PTR_STATUS(request), what);
    request_ = request;
    return absl::OkStatus();
  }
  absl::StatusOr<bool> PollEnded() {
    if (request_ == nullptr) return true;
    const ucs_status_t status = ucp_request_check_status(request_);
    if (status == UCS_INPROGRESS) return false;
    ucp_request_free(std::exchange(request_, nullptr));
    RETURN_IF_ERROR(UcxStatus(status, "UCX message"));
    return true;
  }
  // For whoever frees it; null: it has ended.
  ucs_status_ptr_t Take() { return std::exchange(request_, nullptr); }

 private:
  ucs_status_ptr_t request_ = nullptr;
};

absl::Status SetHandler(ucp_worker_h worker, ucp_am_recv_callback_t callback, void* argument) {
  ucp_am_handler_param_t param = {};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB |
                     UCP_AM_HANDLER_PARAM_FIELD_ARG;
  param.id = kMessageId;
  param.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
  param.cb = callback;
  param.arg = argument;
  return UcxStatus(ucp_worker_set_am_recv_handler(worker, &param), "ucp_worker_set_am_recv_handler");
}

void AwaitEnd(PendingCopy* copy) {
  // A device's copy ends, or the device has failed.
  while (copy != nullptr) {
    const absl::StatusOr<bool> ended = copy->PollEnded();
    if (!ended.ok() || *ended) return;
  }
}

// The owner's side: takes chunks, scatters them and says so.
class StagedExport final : public ExportedPool, private UcxWorker {
 public:
  StagedExport(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options, uint8_t* base, uint64_t size_bytes)
      : UcxWorker(std::move(context)),
        memory_(*options.memory),
        on_device_(memory_.is_device() && options.place == PoolMemory::Place::kPool),
        base_(base),
        size_bytes_(size_bytes),
        chunk_bytes_(options.chunk_bytes),
        chunks_(options.buffers) {}
  ~StagedExport() override {
    std::vector<ucs_status_ptr_t> requests;
    for (Chunk& chunk : chunks_) {
      for (Part* part : {&chunk.runs_part, &chunk.data_part}) {
        if (part->descriptor != nullptr) ucp_am_data_release(worker_, part->descriptor);
        if (ucs_status_ptr_t request = part->request.Take(); request != nullptr) {
          ucp_request_cancel(worker_, request);
          requests.push_back(request);
        }
      }
    }
    for (Request& answer : answers_) {
      if (ucs_status_ptr_t request = answer.Take(); request != nullptr) requests.push_back(request);
    }
    Close(nullptr, std::move(requests));
    DestroyWorker();
    for (Chunk& chunk : chunks_) AwaitEnd(chunk.scatter.get());
  }

  absl::Status Start(absl::string_view transport, const UcxStagedOptions& options) {
    RETURN_IF_ERROR(CreateWorker());
    RETURN_IF_ERROR(SetHandler(worker_, &StagedExport::OnMessage, this));
    for (Chunk& chunk : chunks_) {
      ASSIGN_OR_RETURN(chunk.buffer, memory_.Allocate(chunk_bytes_, options.place));
    }
    description_.transport = std::string(transport);
    ASSIGN_OR_RETURN(description_.address, Address());
    const Limits limits = {chunk_bytes_, chunks_.size()};
    description_.remote_key.assign(reinterpret_cast<const char*>(&limits), sizeof(limits));
    description_.size_bytes = size_bytes_;
    return absl::OkStatus();
  }
  const PoolExport& description() const override { return description_; }
  // Only this side writes to the pool.
  bool revocable() const override { return true; }

  void Progress() override {
    UcxWorker::Progress();
    for (Chunk& chunk : chunks_) {
      if (chunk.is_used) Advance(chunk);
    }
    // An answer that fails fails the endpoint, which is the peer's loss to notice.
    while (!answers_.empty()) {
      const absl::StatusOr<bool> ended = answers_.front().PollEnded();
      if (ended.ok() && !*ended) break;
      answers_.pop_front();
    }
  }
  bool PrepareToSleep() override {
    const bool copies = std::any_of(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) { return chunk.must_poll; });
    return UcxWorker::PrepareToSleep() && !copies;
  }

 private:
  struct Part {
    void* descriptor = nullptr;  // Not being received yet.
    size_t bytes = 0;
    bool has_come = false;  // At least its descriptor.
    bool is_complete = false;
    Request request;
  };
  struct Chunk {
    std::unique_ptr<PoolBuffer> buffer;
    bool is_used = false;
    uint64_t number = 0;
    ucp_ep_h peer = nullptr;
    std::vector<ChunkRun> runs;
    Part runs_part, data_part;
    std::unique_ptr<PendingCopy> scatter;
    bool must_poll = false;  // Nothing tells when it goes on.
  };

  static ucs_status_t OnMessage(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const ucp_am_recv_param_t* param) {
    auto* self = static_cast<StagedExport*>(argument);
    Header message;
    if (header_bytes != sizeof(message) || (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return UCS_OK;
    std::memcpy(&message, header, sizeof(message));
    Chunk* chunk = self->FindChunk(message.chunk);
    const bool fits = message.kind == Header::kRuns
                          ? bytes % sizeof(ChunkRun) == 0 && bytes <= kMaxRunsOfChunk * sizeof(ChunkRun)
                          : message.kind == Header::kData && bytes <= self->chunk_bytes_;
    Part* part = chunk == nullptr ? nullptr : message.kind == Header::kRuns ? &chunk->runs_part : &chunk->data_part;
    if (part == nullptr || !fits || part->has_come) {
      self->Answer(param->reply_ep, Header::kRefused, message.chunk);
      return UCS_OK;
    }
    chunk->peer = param->reply_ep;
    part->has_come = true;
    part->descriptor = data;
    part->bytes = bytes;
    return UCS_INPROGRESS;  // Received by Advance.
  }

  // The chunk of that number, or an unused one for it; null: more come than were offered room.
  Chunk* FindChunk(uint64_t number) {
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

  void Advance(Chunk& chunk) {
    chunk.must_poll = false;
    if (chunk.runs_part.descriptor != nullptr) chunk.runs.resize(chunk.runs_part.bytes / sizeof(ChunkRun));
    absl::StatusOr<bool> ended = Receive(chunk.runs_part, chunk.runs.data(), /*on_device=*/false);
    if (ended.ok()) {
      const absl::StatusOr<bool> data = Receive(chunk.data_part, chunk.buffer->base(), on_device_);
      ended = !data.ok() ? data : *ended && *data;
    }
    if (ended.ok() && *ended) ended = Scatter(chunk);
    if (ended.ok() && !*ended) return;
    if (!ended.ok()) LogWarning("chunk not taken", {{"cause", ended.status().message()}});
    Answer(chunk.peer, ended.ok() ? Header::kScattered : Header::kRefused, chunk.number);
    chunk.is_used = false;
    chunk.runs_part = Part();
    chunk.data_part = Part();
    chunk.scatter.reset();
  }

  absl::StatusOr<bool> Receive(Part& part, void* to, bool on_device) {
    if (part.is_complete) return true;
    if (!part.has_come) return false;
    if (part.descriptor != nullptr) {
      ucp_request_param_t param = {};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE;
      param.memory_type = on_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
      RETURN_IF_ERROR(part.request.Begin(
          ucp_am_recv_data_nbx(worker_, std::exchange(part.descriptor, nullptr), to, part.bytes, &param),
          "ucp_am_recv_data_nbx"));
    }
    ASSIGN_OR_RETURN(part.is_complete, part.request.PollEnded());
    return part.is_complete;
  }

  absl::StatusOr<bool> Scatter(Chunk& chunk) {
    if (chunk.scatter == nullptr) {
      std::vector<CopyRun> runs;
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

  void Answer(ucp_ep_h peer, Header::Kind kind, uint64_t chunk) {
    const Header header = {kind, 0, chunk};
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_COPY_HEADER;
    Request request;
    if (request.Begin(ucp_am_send_nbx(peer, kMessageId, &header, sizeof(header), nullptr, 0, &param), "answer").ok()) {
      answers_.push_back(std::move(request));
    }
  }

  PoolMemory& memory_;
  const bool on_device_;  // The buffers.
  uint8_t* const base_;
  const uint64_t size_bytes_, chunk_bytes_;
  PoolExport description_;
  std::vector<Chunk> chunks_;
  std::deque<Request> answers_;
};

// The writer's side.
class StagedPool final : public RemotePool, private UcxWorker {
 public:
  StagedPool(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options, const PoolExport& pool,
             const Limits& limits)
      : UcxWorker(std::move(context)),
        memory_(*options.memory),
        on_device_(memory_.is_device() && options.place == PoolMemory::Place::kPool),
        size_bytes_(pool.size_bytes),
        chunk_bytes_(std::min(options.chunk_bytes, limits.chunk_bytes) / 16 * 16),
        chunks_(std::min<uint64_t>(options.buffers, limits.buffers)) {}
  ~StagedPool() override {
    std::vector<ucs_status_ptr_t> requests;
    for (Chunk& chunk : chunks_) {
      for (Request* request : {&chunk.runs_request, &chunk.data_request}) {
        if (ucs_status_ptr_t taken = request->Take(); taken != nullptr) requests.push_back(taken);
      }
    }
    Close(endpoint_, std::move(requests));
    DestroyWorker();
    for (Chunk& chunk : chunks_) AwaitEnd(chunk.gather.get());
  }

  absl::Status Start(const PoolExport& pool, PoolMemory::Place place) {
    RETURN_IF_ERROR(CreateWorker());
    RETURN_IF_ERROR(SetHandler(worker_, &StagedPool::OnMessage, this));
    ASSIGN_OR_RETURN(endpoint_, Connect(pool.address, &error_));
    for (Chunk& chunk : chunks_) {
      ASSIGN_OR_RETURN(chunk.buffer, memory_.Allocate(chunk_bytes_, place));
    }
    return absl::OkStatus();
  }

  absl::Status Write(WriteOrder order) override {
    RETURN_IF_ERROR(error_);
    RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
    RETURN_IF_ERROR(AddSums(memory_, order));
    for (const CopyRun& run : order.runs) {
      if (run.bytes > 0) waiting_.push_back({order.source_base, run});
    }
    AdvanceAll();
    return error_;
  }

  absl::StatusOr<bool> PollFlushed() override {
    Progress();
    RETURN_IF_ERROR(error_);
    return waiting_.empty() &&
           std::all_of(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) { return chunk.state == State::kFree; });
  }

  std::string path() const override { return UcxLanes(endpoint_); }

  void Progress() override {
    UcxWorker::Progress();
    AdvanceAll();
  }
  bool PrepareToSleep() override {
    const bool copies = std::any_of(chunks_.begin(), chunks_.end(),
                                    [](const Chunk& chunk) { return chunk.state == State::kGathering; });
    return UcxWorker::PrepareToSleep() && !copies && !must_retry_;
  }

 private:
  enum class State { kFree, kGathering, kSent };
  struct Chunk {
    std::unique_ptr<PoolBuffer> buffer;
    State state = State::kFree;
    uint64_t number = 0;
    int64_t bytes = 0;
    std::vector<ChunkRun> runs;
    std::unique_ptr<PendingCopy> gather;
    Request runs_request, data_request;
    bool is_scattered = false;
  };
  struct WaitingRun {
    const uint8_t* source_base;
    CopyRun run;
  };

  static ucs_status_t OnMessage(void* argument, const void* header, size_t header_bytes, void*, size_t,
                                const ucp_am_recv_param_t*) {
    auto* self = static_cast<StagedPool*>(argument);
    Header message;
    if (header_bytes != sizeof(message)) return UCS_OK;
    std::memcpy(&message, header, sizeof(message));
    for (Chunk& chunk : self->chunks_) {
      if (chunk.state != State::kSent || chunk.number != message.chunk) continue;
      chunk.is_scattered = message.kind == Header::kScattered;
      if (!chunk.is_scattered) self->error_ = absl::UnavailableError("the peer did not take a chunk");
    }
    return UCS_OK;
  }

  void AdvanceAll() {
    for (Chunk& chunk : chunks_) {
      if (error_.ok()) error_ = Advance(chunk);
    }
  }

  absl::Status Advance(Chunk& chunk) {
    if (chunk.state == State::kFree && !waiting_.empty()) RETURN_IF_ERROR(Gather(chunk));
    if (chunk.state == State::kGathering) {
      ASSIGN_OR_RETURN(const bool gathered, chunk.gather->PollEnded());
      if (gathered) RETURN_IF_ERROR(SendChunk(chunk));
    }
    if (chunk.state == State::kSent) {
      ASSIGN_OR_RETURN(const bool runs_sent, chunk.runs_request.PollEnded());
      ASSIGN_OR_RETURN(const bool data_sent, chunk.data_request.PollEnded());
      if (runs_sent && data_sent && chunk.is_scattered) chunk.state = State::kFree;
    }
    return absl::OkStatus();
  }

  // Takes what waits, as much as there is room for and one source has.
  absl::Status Gather(Chunk& chunk) {
    chunk.runs.clear();
    chunk.bytes = 0;
    const uint8_t* base = waiting_.front().source_base;
    std::vector<CopyRun> runs;
    size_t taken = 0;
    int64_t taken_of_last = 0;  // Of a run that is longer than the room for it.
    for (; taken < waiting_.size() && runs.size() < kMaxRunsOfChunk; ++taken) {
      const WaitingRun& next = waiting_[taken];
      const int64_t room = static_cast<int64_t>(chunk_bytes_) - chunk.bytes;
      const int64_t bytes = std::min(next.run.bytes, room);
      if (next.source_base != base || bytes == 0) break;
      runs.push_back({next.run.source, chunk.bytes, bytes});
      chunk.runs.push_back({next.run.destination, bytes});
      chunk.bytes += bytes;
      if (bytes < next.run.bytes) {
        taken_of_last = bytes;
        break;
      }
    }
    absl::StatusOr<std::unique_ptr<PendingCopy>> copy = memory_.StartCopy(base, chunk.buffer->base(), runs);
    must_retry_ = absl::IsUnavailable(copy.status());
    if (must_retry_) return absl::OkStatus();
    RETURN_IF_ERROR(copy.status());
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<int64_t>(taken));
    if (taken_of_last > 0) {
      CopyRun& rest = waiting_.front().run;
      rest = {rest.source + taken_of_last, rest.destination + taken_of_last, rest.bytes - taken_of_last};
    }
    chunk.gather = *std::move(copy);
    chunk.state = State::kGathering;
    return absl::OkStatus();
  }

  absl::Status SendChunk(Chunk& chunk) {
    chunk.gather.reset();
    chunk.number = next_chunk_++;
    chunk.is_scattered = false;
    chunk.state = State::kSent;
    auto send = [&](Header::Kind kind, const void* data, size_t bytes, bool on_device, Request& request) {
      const Header header = {kind, 0, chunk.number};
      const ucp_request_param_t param = SendParameters(on_device);
      return request.Begin(ucp_am_send_nbx(endpoint_, kMessageId, &header, sizeof(header), data, bytes, &param),
                           "ucp_am_send_nbx");
    };
    RETURN_IF_ERROR(
        send(Header::kRuns, chunk.runs.data(), chunk.runs.size() * sizeof(ChunkRun), false, chunk.runs_request));
    return send(Header::kData, chunk.buffer->base(), static_cast<size_t>(chunk.bytes), on_device_, chunk.data_request);
  }

  PoolMemory& memory_;
  const bool on_device_;  // The buffers.
  const uint64_t size_bytes_, chunk_bytes_;
  ucp_ep_h endpoint_ = nullptr;
  std::deque<WaitingRun> waiting_;
  bool must_retry_ = false;
  std::vector<Chunk> chunks_;
  uint64_t next_chunk_ = 1;
  absl::Status error_;
};

class UcxStagedTransport final : public UcxTransportBase {
 public:
  UcxStagedTransport(std::shared_ptr<UcxContext> context, const UcxStagedOptions& options)
      : UcxTransportBase(std::move(context)), options_(options) {}
  absl::string_view name() const override {
    return options_.memory->is_device() && options_.place == PoolMemory::Place::kHost ? "ucx_host_staged"
                                                                                      : "ucx_staged";
  }

  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    auto pool = std::make_unique<StagedExport>(context_, options_, base, size_bytes);
    RETURN_IF_ERROR(pool->Start(name(), options_));
    return pool;
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    Limits limits;
    if (pool.remote_key.size() != sizeof(limits)) {
      return absl::UnavailableError("the peer's description of its pool is not understood");
    }
    std::memcpy(&limits, pool.remote_key.data(), sizeof(limits));
    if (limits.buffers == 0 || limits.chunk_bytes < 16) return absl::UnavailableError("the peer has no buffers");
    auto remote = std::make_unique<StagedPool>(context_, options_, pool, limits);
    if (absl::Status status = remote->Start(pool, options_.place); !status.ok()) {
      return absl::UnavailableError(status.message());
    }
    return remote;
  }

 private:
  const UcxStagedOptions options_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> NewUcxStagedTransport(const UcxStagedOptions& options) {
  const bool on_device = options.memory->is_device() && options.place == PoolMemory::Place::kPool;
  ASSIGN_OR_RETURN(std::shared_ptr<UcxContext> context, UcxContext::Create(on_device));
  return std::unique_ptr<Transport>(std::make_unique<UcxStagedTransport>(std::move(context), options));
}

}  // namespace tandem
