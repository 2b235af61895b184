#include "kvtransfer/ucx/ucx_transport.h"

#include <ucp/api/ucp.h>

#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/ucx/ucx_worker.h"

namespace tandem {
namespace {

class UcxExportedPool final : public ExportedPool, private UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<ExportedPool>> Create(std::shared_ptr<UcxContext> context, bool on_device,
                                                              uint8_t* base, uint64_t size_bytes) {
    auto self = std::make_unique<UcxExportedPool>(std::move(context), on_device);
    RETURN_IF_ERROR(self->CreateWorker());
    self->description_ = {
        .transport = "ucx", .base_address = reinterpret_cast<uint64_t>(base), .size_bytes = size_bytes};
    void* key = nullptr;
    size_t key_size = 0;
    RETURN_IF_ERROR(
        UcxStatus(ucp_rkey_pack(self->context_->handle, self->context_->memory, &key, &key_size), "ucp_rkey_pack"));
    self->description_.remote_key.assign(static_cast<char*>(key), key_size);
    ucp_rkey_buffer_release(key);
    ASSIGN_OR_RETURN(self->description_.address, self->Address());
    return std::unique_ptr<ExportedPool>(std::move(self));
  }
  UcxExportedPool(std::shared_ptr<UcxContext> context, bool on_device)
      : UcxWorker(std::move(context)), on_device_(on_device) {}
  const PoolExport& description() const override { return description_; }
  // Over TCP it is this side's worker that carries out the peer's puts; between GPUs it is the peer's GPU.
  bool revocable() const override { return !on_device_; }

 private:
  const bool on_device_;
  PoolExport description_;
};

class UcxRemotePool final : public RemotePool, private UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<RemotePool>> Open(std::shared_ptr<UcxContext> context, PoolMemory& memory,
                                                          const PoolExport& pool) {
    auto self = std::make_unique<UcxRemotePool>(std::move(context), memory, pool);
    RETURN_IF_ERROR(self->CreateWorker());
    ASSIGN_OR_RETURN(self->endpoint_, self->Connect(pool.address, &self->error_));
    RETURN_IF_ERROR(UcxStatus(ucp_ep_rkey_unpack(self->endpoint_, pool.remote_key.data(), &self->remote_key_),
                              "ucp_ep_rkey_unpack"));
    return std::unique_ptr<RemotePool>(std::move(self));
  }

  UcxRemotePool(std::shared_ptr<UcxContext> context, PoolMemory& memory, const PoolExport& pool)
      : UcxWorker(std::move(context)), memory_(memory), base_(pool.base_address), size_bytes_(pool.size_bytes) {}

  ~UcxRemotePool() override {
    if (flush_ != nullptr) requests_.push_back(flush_);
    Close(endpoint_, std::move(requests_));
    // Puts of the device's own engines do not end with their requests.
    memory_.WaitForDevice();
    if (remote_key_ != nullptr) ucp_rkey_destroy(remote_key_);
  }

  absl::Status Write(WriteOrder order) override {
    RETURN_IF_ERROR(error_);
    RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
    RETURN_IF_ERROR(AddSums(memory_, order));
    for (const CopyRun& run : order.runs) {
      waiting_.push_back({order.source_base + run.source, run.destination, run.bytes});
    }
    needs_flush_ = true;
    return Issue();
  }

  absl::StatusOr<bool> PollFlushed() override {
    Progress();
    RETURN_IF_ERROR(error_);
    if (!waiting_.empty()) return false;
    if (needs_flush_ && flush_ == nullptr) {
      // Flushes what was written until now; a Write after this asks for another one.
      needs_flush_ = false;
      ucp_request_param_t param = {};
      ucs_status_ptr_t request = ucp_ep_flush_nbx(endpoint_, &param);
      if (UCS_PTR_IS_ERR(request)) return error_ = UcxStatus(UCS_PTR_STATUS(request), "ucp_ep_flush_nbx");
      if (request != nullptr) flush_ = request;
    }
    if (flush_ != nullptr) {
      ucs_status_t status = ucp_request_check_status(flush_);
      if (status == UCS_INPROGRESS) return false;
      ucp_request_free(flush_);
      flush_ = nullptr;
      if (status != UCS_OK) return error_ = UcxStatus(status, "UCX flush");
    }
    return !needs_flush_ && requests_.empty();
  }

  std::string path() const override { return UcxLanes(endpoint_); }

  void Progress() override {
    UcxWorker::Progress();
    if (error_.ok()) error_ = Reap();
    if (error_.ok()) error_ = Issue();
  }

 private:
  struct Put {
    const uint8_t* source;
    int64_t destination, bytes;
  };
  // What waits inside UCX is memory, and a peer that stands still takes nothing.
  static constexpr size_t kMaxOutstanding = 4096;

  absl::Status Issue() {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FLAG_MULTI_SEND;
    for (; !waiting_.empty() && requests_.size() < kMaxOutstanding; waiting_.pop_front()) {
      const Put& put = waiting_.front();
      ucs_status_ptr_t request = ucp_put_nbx(endpoint_, put.source, static_cast<size_t>(put.bytes),
                                             base_ + static_cast<uint64_t>(put.destination), remote_key_, &param);
      if (UCS_PTR_IS_ERR(request)) return error_ = UcxStatus(UCS_PTR_STATUS(request), "ucp_put_nbx");
      if (request != nullptr) requests_.push_back(request);
    }
    return absl::OkStatus();
  }

  // Frees finished requests; an error of one is the link's.
  absl::Status Reap() {
    absl::Status result;
    size_t kept = 0;
    for (ucs_status_ptr_t request : requests_) {
      ucs_status_t status = ucp_request_check_status(request);
      if (status == UCS_INPROGRESS) {
        requests_[kept++] = request;
        continue;
      }
      ucp_request_free(request);
      if (status != UCS_OK) result = UcxStatus(status, "UCX put");
    }
    requests_.resize(kept);
    return result;
  }

  PoolMemory& memory_;
  const uint64_t base_, size_bytes_;
  ucp_ep_h endpoint_ = nullptr;
  ucp_rkey_h remote_key_ = nullptr;
  std::deque<Put> waiting_;  // Not given to UCX yet.
  std::vector<ucs_status_ptr_t> requests_;
  ucs_status_ptr_t flush_ = nullptr;
  bool needs_flush_ = false;
  absl::Status error_;
};

class UcxTransport final : public UcxTransportBase {
 public:
  UcxTransport(std::shared_ptr<UcxContext> context, PoolMemory& memory)
      : UcxTransportBase(std::move(context)), memory_(memory) {}
  absl::string_view name() const override { return "ucx"; }

  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    if (context_->memory == nullptr) {
      ucp_mem_map_params_t params = {};
      params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
      if (memory_.is_device()) {
        params.field_mask |= UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
        params.memory_type = UCS_MEMORY_TYPE_CUDA;
      }
      params.address = base;
      params.length = size_bytes;
      RETURN_IF_ERROR(UcxStatus(ucp_mem_map(context_->handle, &params, &context_->memory), "ucp_mem_map"));
    }
    return UcxExportedPool::Create(context_, memory_.is_device(), base, size_bytes);
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    return UcxRemotePool::Open(context_, memory_, pool);
  }

 private:
  PoolMemory& memory_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> NewUcxTransport(const UcxOptions& options) {
  ASSIGN_OR_RETURN(std::shared_ptr<UcxContext> context, UcxContext::Create(options.memory->is_device()));
  return std::unique_ptr<Transport>(std::make_unique<UcxTransport>(std::move(context), *options.memory));
}

std::string UcxVersion() {
  unsigned major, minor, release;
  ucp_get_version(&major, &minor, &release);
  return absl::StrCat(major, ".", minor, ".", release);
}

}  // namespace tandem
