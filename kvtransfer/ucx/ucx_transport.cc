#include "kvtransfer/ucx/ucx_transport.h"

#include <sys/epoll.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

absl::Status ToStatus(ucs_status_t status, absl::string_view what) {
  if (status == UCS_OK) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(what, ": ", ucs_status_string(status)));
}

class UcxWorker;

// A UCX context and all workers in it.
//
// Thread-safety: the link thread only, after creation.
// Ownership: co-owned by the transport and its workers.
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
    self->event_fd_ = epoll_create1(EPOLL_CLOEXEC);
    if (self->event_fd_ < 0) return absl::ErrnoToStatus(errno, "epoll_create1");
    return self;
  }
  UcxContext() = default;
  ~UcxContext() {
    if (memory_ != nullptr) ucp_mem_unmap(context_, memory_);
    if (context_ != nullptr) ucp_cleanup(context_);
    if (event_fd_ >= 0) close(event_fd_);
  }
  ucp_context_h context_ = nullptr;
  ucp_mem_h memory_ = nullptr;  // The exported pool.
  int event_fd_ = -1;           // An epoll of all workers' descriptors.
  std::vector<UcxWorker*> workers_;
};

// One UCX worker for each link: its end closes every connection of the link, so that nothing that
// still waits in a socket is carried out later.
//
// Thread-safety: the link thread only.
class UcxWorker {
 public:
  explicit UcxWorker(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;
  virtual ~UcxWorker() {
    std::erase(context_->workers_, this);
    if (event_fd_ >= 0) epoll_ctl(context_->event_fd_, EPOLL_CTL_DEL, event_fd_, nullptr);
    if (worker_ != nullptr) ucp_worker_destroy(worker_);
  }
  absl::Status CreateWorker() {
    ucp_worker_params_t params = {};
    params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    // Serialised, not single: links may be made before the link thread starts.
    params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
    RETURN_IF_ERROR(ToStatus(ucp_worker_create(context_->context_, &params, &worker_), "ucp_worker_create"));
    RETURN_IF_ERROR(ToStatus(ucp_worker_get_efd(worker_, &event_fd_), "ucp_worker_get_efd"));
    epoll_event event{.events = EPOLLIN, .data = {.fd = event_fd_}};
    epoll_ctl(context_->event_fd_, EPOLL_CTL_ADD, event_fd_, &event);
    context_->workers_.push_back(this);
    return absl::OkStatus();
  }
  virtual void Progress() {
    while (ucp_worker_progress(worker_) != 0) {
    }
  }
  bool Arm() { return ucp_worker_arm(worker_) == UCS_OK; }

 protected:
  // Co-owners: the transport and its other workers.
  const std::shared_ptr<UcxContext> context_;
  ucp_worker_h worker_ = nullptr;

 private:
  int event_fd_ = -1;
};

class UcxExportedPool final : public ExportedPool, private UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<ExportedPool>> Create(std::shared_ptr<UcxContext> context, uint8_t* base,
                                                              uint64_t size_bytes) {
    auto self = std::make_unique<UcxExportedPool>(std::move(context));
    RETURN_IF_ERROR(self->CreateWorker());
    self->description_ = {
        .transport = "ucx", .base_address = reinterpret_cast<uint64_t>(base), .size_bytes = size_bytes};
    void* key = nullptr;
    size_t key_size = 0;
    RETURN_IF_ERROR(
        ToStatus(ucp_rkey_pack(self->context_->context_, self->context_->memory_, &key, &key_size), "ucp_rkey_pack"));
    self->description_.remote_key.assign(static_cast<char*>(key), key_size);
    ucp_rkey_buffer_release(key);
    ucp_address_t* address = nullptr;
    size_t address_size = 0;
    RETURN_IF_ERROR(ToStatus(ucp_worker_get_address(self->worker_, &address, &address_size), "ucp_worker_get_address"));
    self->description_.address.assign(reinterpret_cast<char*>(address), address_size);
    ucp_worker_release_address(self->worker_, address);
    return std::unique_ptr<ExportedPool>(std::move(self));
  }
  explicit UcxExportedPool(std::shared_ptr<UcxContext> context) : UcxWorker(std::move(context)) {}
  const PoolExport& description() const override { return description_; }
  // Over TCP it is this side's worker that carries out the peer's puts.
  bool revocable() const override { return true; }

 private:
  PoolExport description_;
};

class UcxRemotePool final : public RemotePool, private UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<RemotePool>> Open(std::shared_ptr<UcxContext> context, const PoolExport& pool) {
    auto self = std::make_unique<UcxRemotePool>(std::move(context), pool);
    RETURN_IF_ERROR(self->CreateWorker());
    ucp_ep_params_t params = {};
    params.field_mask =
        UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params.address = reinterpret_cast<const ucp_address_t*>(pool.address.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
      static_cast<UcxRemotePool*>(arg)->error_ = ToStatus(status, "UCX peer");
    };
    params.err_handler.arg = self.get();
    RETURN_IF_ERROR(ToStatus(ucp_ep_create(self->worker_, &params, &self->endpoint_), "ucp_ep_create"));
    RETURN_IF_ERROR(ToStatus(ucp_ep_rkey_unpack(self->endpoint_, pool.remote_key.data(), &self->remote_key_),
                             "ucp_ep_rkey_unpack"));
    return std::unique_ptr<RemotePool>(std::move(self));
  }

  UcxRemotePool(std::shared_ptr<UcxContext> context, const PoolExport& pool)
      : UcxWorker(std::move(context)), base_(pool.base_address), size_bytes_(pool.size_bytes) {}

  ~UcxRemotePool() override {
    if (endpoint_ != nullptr) {
      ucp_request_param_t param = {};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
      param.flags = UCP_EP_CLOSE_FLAG_FORCE;
      // By force, which cancels the puts. Should UCX not end them all the same, the worker's end does.
      ucs_status_ptr_t closing = ucp_ep_close_nbx(endpoint_, &param);
      if (UCS_PTR_IS_PTR(closing)) requests_.push_back(closing);
    }
    if (flush_ != nullptr) requests_.push_back(flush_);
    const absl::Time give_up = Clock::Real().Now() + absl::Milliseconds(100);
    for (ucs_status_ptr_t request : requests_) {
      while (ucp_request_check_status(request) == UCS_INPROGRESS && Clock::Real().Now() < give_up) {
        ucp_worker_progress(worker_);
      }
      ucp_request_free(request);
    }
    if (remote_key_ != nullptr) ucp_rkey_destroy(remote_key_);
  }

  absl::Status Write(WriteOrder order) override {
    RETURN_IF_ERROR(error_);
    RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
    AddHostSums(order);
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
      if (UCS_PTR_IS_ERR(request)) return error_ = ToStatus(UCS_PTR_STATUS(request), "ucp_put_nbx");
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
      if (status != UCS_OK) result = ToStatus(status, "UCX put");
    }
    requests_.resize(kept);
    return result;
  }

  const uint64_t base_, size_bytes_;
  ucp_ep_h endpoint_ = nullptr;
  ucp_rkey_h remote_key_ = nullptr;
  std::deque<Put> waiting_;  // Not given to UCX yet.
  std::vector<ucs_status_ptr_t> requests_;
  ucs_status_ptr_t flush_ = nullptr;
  bool needs_flush_ = false;
  absl::Status error_;
};

class UcxTransport final : public Transport {
 public:
  explicit UcxTransport(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}
  absl::string_view name() const override { return "ucx"; }

  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    if (context_->memory_ == nullptr) {
      ucp_mem_map_params_t params = {};
      params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
      params.address = base;
      params.length = size_bytes;
      RETURN_IF_ERROR(ToStatus(ucp_mem_map(context_->context_, &params, &context_->memory_), "ucp_mem_map"));
    }
    return UcxExportedPool::Create(context_, base, size_bytes);
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    return UcxRemotePool::Open(context_, pool);
  }

  void Progress() override {
    for (UcxWorker* worker : context_->workers_) worker->Progress();
  }
  int event_fd() const override { return context_->event_fd_; }
  bool PrepareToSleep() override {
    bool armed = true;
    for (UcxWorker* worker : context_->workers_) armed &= worker->Arm();
    return armed;
  }

 private:
  // Co-owners: the pools that it opened and exported.
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
