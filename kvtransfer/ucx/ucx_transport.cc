#include "kvtransfer/ucx/ucx_transport.h"

#include <ucp/api/ucp.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

absl::Status ToStatus(ucs_status_t status, absl::string_view what) {
  if (status == UCS_OK) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(what, ": ", ucs_status_string(status)));
}

// A UCX context with one worker.
//
// Thread-safety: the link thread only (UCS_THREAD_MODE_SINGLE), after creation.
class UcxContext {
 public:
  static absl::StatusOr<std::shared_ptr<UcxContext>> Create() {
    auto self = std::make_shared<UcxContext>();
    ucp_config_t* config = nullptr;
    RETURN_IF_ERROR(ToStatus(ucp_config_read(nullptr, nullptr, &config), "ucp_config_read"));
    // The host's shared memory is the shm transport's; UCX's own has no detection of a peer's
    // death.
    if (std::getenv("UCX_TLS") == nullptr) ucp_config_modify(config, "TLS", "tcp");
    ucp_params_t params = {};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
    params.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
    params.name = "tandem";
    ucs_status_t status = ucp_init(&params, config, &self->context_);
    ucp_config_release(config);
    RETURN_IF_ERROR(ToStatus(status, "ucp_init"));
    ucp_worker_params_t worker_params = {};
    worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
    RETURN_IF_ERROR(ToStatus(ucp_worker_create(self->context_, &worker_params, &self->worker_), "ucp_worker_create"));
    RETURN_IF_ERROR(ToStatus(ucp_worker_get_efd(self->worker_, &self->event_fd_), "ucp_worker_get_efd"));
    return self;
  }
  UcxContext() = default;
  ~UcxContext() {
    if (memory_ != nullptr) ucp_mem_unmap(context_, memory_);
    if (worker_ != nullptr) ucp_worker_destroy(worker_);
    if (context_ != nullptr) ucp_cleanup(context_);
  }
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_mem_h memory_ = nullptr;  // The exported pool.
  int event_fd_ = -1;
};

// Waits for a request of a call that never blocks for long (closing an endpoint by force).
void Await(UcxContext& context, ucs_status_ptr_t request) {
  if (!UCS_PTR_IS_PTR(request)) return;
  while (ucp_request_check_status(request) == UCS_INPROGRESS) ucp_worker_progress(context.worker_);
  ucp_request_free(request);
}

class UcxRemotePool final : public RemotePool {
 public:
  static absl::StatusOr<std::unique_ptr<RemotePool>> Open(std::shared_ptr<UcxContext> context, const PoolExport& pool) {
    auto self = std::make_unique<UcxRemotePool>(std::move(context), pool);
    ucp_ep_params_t params = {};
    params.field_mask =
        UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params.address = reinterpret_cast<const ucp_address_t*>(pool.address.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
      static_cast<UcxRemotePool*>(arg)->error_ = ToStatus(status, "UCX peer");
    };
    params.err_handler.arg = self.get();
    RETURN_IF_ERROR(ToStatus(ucp_ep_create(self->context_->worker_, &params, &self->endpoint_), "ucp_ep_create"));
    RETURN_IF_ERROR(ToStatus(ucp_ep_rkey_unpack(self->endpoint_, pool.remote_key.data(), &self->remote_key_),
                             "ucp_ep_rkey_unpack"));
    return std::unique_ptr<RemotePool>(std::move(self));
  }

  UcxRemotePool(std::shared_ptr<UcxContext> context, const PoolExport& pool)
      : context_(std::move(context)), base_(pool.base_address), size_bytes_(pool.size_bytes) {}

  ~UcxRemotePool() override {
    if (remote_key_ != nullptr) ucp_rkey_destroy(remote_key_);
    if (endpoint_ != nullptr) {
      ucp_request_param_t param = {};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
      param.flags = UCP_EP_CLOSE_FLAG_FORCE;
      Await(*context_, ucp_ep_close_nbx(endpoint_, &param));
    }
    for (ucs_status_ptr_t request : requests_) ucp_request_free(request);
    if (flush_ != nullptr) ucp_request_free(flush_);
  }

  absl::Status Write(const uint8_t* source_base, absl::Span<const CopyRun> runs) override {
    RETURN_IF_ERROR(error_);
    RETURN_IF_ERROR(CheckRuns(runs, size_bytes_));
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FLAG_MULTI_SEND;
    for (const CopyRun& run : runs) {
      ucs_status_ptr_t request = ucp_put_nbx(endpoint_, source_base + run.source, run.bytes,
                                             base_ + static_cast<uint64_t>(run.destination), remote_key_, &param);
      if (UCS_PTR_IS_ERR(request)) return error_ = ToStatus(UCS_PTR_STATUS(request), "ucp_put_nbx");
      if (request != nullptr) requests_.push_back(request);
      // Bounded: what waits inside UCX is memory.
      while (requests_.size() > kMaxOutstanding) {
        RETURN_IF_ERROR(Reap());
        ucp_worker_progress(context_->worker_);
      }
    }
    needs_flush_ = true;
    return absl::OkStatus();
  }

  absl::StatusOr<bool> PollFlushed() override {
    ucp_worker_progress(context_->worker_);
    RETURN_IF_ERROR(Reap());
    if (needs_flush_ && flush_ == nullptr) {
      // Flushes what was written until now; a Write after this asks for another one.
      needs_flush_ = false;
      ucp_request_param_t param = {};
      ucs_status_ptr_t request = ucp_ep_flush_nbx(endpoint_, &param);
      if (UCS_PTR_IS_ERR(request)) return error_ = ToStatus(UCS_PTR_STATUS(request), "ucp_ep_flush_nbx");
      if (request != nullptr) flush_ = request;
    }
    if (flush_ != nullptr) {
      ucs_status_t status = ucp_request_check_status(flush_);
      if (status == UCS_INPROGRESS) return false;
      ucp_request_free(flush_);
      flush_ = nullptr;
      if (status != UCS_OK) return error_ = ToStatus(status, "UCX flush");
    }
    return !needs_flush_ && requests_.empty();
  }

 private:
  static constexpr size_t kMaxOutstanding = 4096;

  // Frees finished requests; an error of one is the link's.
  absl::Status Reap() {
    size_t kept = 0;
    for (ucs_status_ptr_t request : requests_) {
      ucs_status_t status = ucp_request_check_status(request);
      if (status == UCS_INPROGRESS) {
        requests_[kept++] = request;
        continue;
      }
      ucp_request_free(request);
      if (status != UCS_OK) error_ = ToStatus(status, "UCX put");
    }
    requests_.resize(kept);
    return error_;
  }

  // Co-owners: the transport and its other pools.
  const std::shared_ptr<UcxContext> context_;
  const uint64_t base_, size_bytes_;
  ucp_ep_h endpoint_ = nullptr;
  ucp_rkey_h remote_key_ = nullptr;
  std::vector<ucs_status_ptr_t> requests_;
  ucs_status_ptr_t flush_ = nullptr;
  bool needs_flush_ = false;
  absl::Status error_;
};

class UcxTransport final : public Transport {
 public:
  explicit UcxTransport(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}
  absl::string_view name() const override { return "ucx"; }

  absl::StatusOr<PoolExport> Export(uint8_t* base, uint64_t size_bytes) override {
    ucp_mem_map_params_t params = {};
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
    params.address = base;
    params.length = size_bytes;
    RETURN_IF_ERROR(ToStatus(ucp_mem_map(context_->context_, &params, &context_->memory_), "ucp_mem_map"));
    PoolExport pool{.transport = "ucx", .base_address = reinterpret_cast<uint64_t>(base), .size_bytes = size_bytes};
    void* key = nullptr;
    size_t key_size = 0;
    RETURN_IF_ERROR(ToStatus(ucp_rkey_pack(context_->context_, context_->memory_, &key, &key_size), "ucp_rkey_pack"));
    pool.remote_key.assign(static_cast<char*>(key), key_size);
    ucp_rkey_buffer_release(key);
    ucp_address_t* address = nullptr;
    size_t address_size = 0;
    RETURN_IF_ERROR(
        ToStatus(ucp_worker_get_address(context_->worker_, &address, &address_size), "ucp_worker_get_address"));
    pool.address.assign(reinterpret_cast<char*>(address), address_size);
    ucp_worker_release_address(context_->worker_, address);
    return pool;
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    return UcxRemotePool::Open(context_, pool);
  }

  void Progress() override {
    while (ucp_worker_progress(context_->worker_) != 0) {
    }
  }
  int event_fd() const override { return context_->event_fd_; }
  bool PrepareToSleep() override { return ucp_worker_arm(context_->worker_) == UCS_OK; }

 private:
  // Co-owners: the pools it opened.
  const std::shared_ptr<UcxContext> context_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> NewUcxTransport() {
  ASSIGN_OR_RETURN(std::shared_ptr<UcxContext> context, UcxContext::Create());
  return std::unique_ptr<Transport>(std::make_unique<UcxTransport>(std::move(context)));
}

std::string UcxVersion() {
  unsigned major, minor, release;
  ucp_get_version(&major, &minor, &release);
  return absl::StrCat(major, ".", minor, ".", release);
}

}  // namespace tandem
