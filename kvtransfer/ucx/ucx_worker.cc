#include "kvtransfer/ucx/ucx_worker.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

// Unless the environment says otherwise. An unknown name is one of a newer UCX than this.
void Set(ucp_config_t* config, const char* name, const char* value) {
  if (std::getenv(absl::StrCat("UCX_", name).c_str()) == nullptr) ucp_config_modify(config, name, value);
}

}  // namespace

absl::Status UcxStatus(ucs_status_t status, absl::string_view what) {
  if (status == UCS_OK) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(what, ": ", ucs_status_string(status)));
}

absl::StatusOr<std::shared_ptr<UcxContext>> UcxContext::Create(bool on_device) {
  auto self = std::make_shared<UcxContext>();
  ucp_config_t* config = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_config_read(nullptr, nullptr, &config), "ucp_config_read"));
  // The host's shared memory is the shm transport's; UCX's own has no detection of a peer's death.
  Set(config, "TLS", on_device ? "cuda_ipc,cuda_copy,tcp" : "tcp");
  // What UCX cannot reach with the GPUs' links is an error, for the next transport to do better, and not a slow way
  // through the host.
  if (on_device) Set(config, "PROTO_EMULATION_ENABLE", "n");
  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "tandem";
  ucs_status_t status = ucp_init(&params, config, &self->handle);
  ucp_config_release(config);
  RETURN_IF_ERROR(UcxStatus(status, "ucp_init"));
  self->event_fd = epoll_create1(EPOLL_CLOEXEC);
  if (self->event_fd < 0) return absl::ErrnoToStatus(errno, "epoll_create1");
  return self;
}

UcxContext::~UcxContext() {
  if (memory != nullptr) ucp_mem_unmap(handle, memory);
  if (handle != nullptr) ucp_cleanup(handle);
  if (event_fd >= 0) close(event_fd);
}

UcxWorker::~UcxWorker() { DestroyWorker(); }

void UcxWorker::DestroyWorker() {
  std::erase(context_->workers, this);
  if (event_fd_ >= 0) epoll_ctl(context_->event_fd, EPOLL_CTL_DEL, std::exchange(event_fd_, -1), nullptr);
  if (worker_ != nullptr) ucp_worker_destroy(std::exchange(worker_, nullptr));
}

absl::Status UcxWorker::CreateWorker() {
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  // Serialised, not single: links may be made before the link thread starts.
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  RETURN_IF_ERROR(UcxStatus(ucp_worker_create(context_->handle, &params, &worker_), "ucp_worker_create"));
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_efd(worker_, &event_fd_), "ucp_worker_get_efd"));
  epoll_event event{.events = EPOLLIN, .data = {.fd = event_fd_}};
  epoll_ctl(context_->event_fd, EPOLL_CTL_ADD, event_fd_, &event);
  context_->workers.push_back(this);
  return absl::OkStatus();
}

void UcxWorker::Progress() {
  while (ucp_worker_progress(worker_) != 0) {
  }
}

absl::StatusOr<std::string> UcxWorker::Address() const {
  ucp_address_t* address = nullptr;
  size_t size = 0;
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_address(worker_, &address, &size), "ucp_worker_get_address"));
  std::string bytes(reinterpret_cast<char*>(address), size);
  ucp_worker_release_address(worker_, address);
  return bytes;
}

absl::StatusOr<ucp_ep_h> UcxWorker::Connect(const std::string& address, absl::Status* error) {
  ucp_ep_params_t params = {};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
    *static_cast<absl::Status*>(arg) = UcxStatus(status, "UCX peer");
  };
  params.err_handler.arg = error;
  ucp_ep_h endpoint = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_ep_create(worker_, &params, &endpoint), "ucp_ep_create"));
  return endpoint;
}

void UcxWorker::Close(ucp_ep_h endpoint, std::vector<ucs_status_ptr_t> requests) {
  if (endpoint != nullptr) {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    ucs_status_ptr_t closing = ucp_ep_close_nbx(endpoint, &param);
    if (UCS_PTR_IS_PTR(closing)) requests.push_back(closing);
  }
  const absl::Time give_up = Clock::Real().Now() + absl::Milliseconds(100);
  for (ucs_status_ptr_t request : requests) {
    while (ucp_request_check_status(request) == UCS_INPROGRESS && Clock::Real().Now() < give_up) {
      ucp_worker_progress(worker_);
    }
    ucp_request_free(request);
  }
}

std::string UcxLanes(ucp_ep_h endpoint) {
  std::vector<ucp_transport_entry_t> entries(16);
  ucp_ep_attr_t attributes = {};
  attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS;
  attributes.transports.entries = entries.data();
  attributes.transports.num_entries = static_cast<unsigned>(entries.size());
  attributes.transports.entry_size = sizeof(ucp_transport_entry_t);
  if (ucp_ep_query(endpoint, &attributes) != UCS_OK) return "";
  std::vector<std::string> lanes;
  for (unsigned i = 0; i < attributes.transports.num_entries; ++i) {
    std::string lane = absl::StrCat(entries[i].transport_name, "/", entries[i].device_name);
    if (std::find(lanes.begin(), lanes.end(), lane) == lanes.end()) lanes.push_back(std::move(lane));
  }
  return absl::StrJoin(lanes, ", ");
}

}  // namespace tandem
