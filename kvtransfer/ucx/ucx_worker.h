#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvtransfer/transport.h"

namespace tandem {

// What UCX said of `what`; UNAVAILABLE.
absl::Status UcxStatus(ucs_status_t status, absl::string_view what);

class UcxWorker;

// A UCX context and all workers in it.
//
// Thread-safety: the link thread only, after creation.
// Ownership: co-owned by the transport and its workers.
struct UcxContext {
  // `on_device`: what it moves lies on GPUs.
  static absl::StatusOr<std::shared_ptr<UcxContext>> Create(bool on_device);
  UcxContext() = default;
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;
  ~UcxContext();

  ucp_context_h handle = nullptr;
  ucp_mem_h memory = nullptr;  // The exported pool.
  int event_fd = -1;           // An epoll of all workers' descriptors.
  std::vector<UcxWorker*> workers;
};

// One UCX worker for each link: its end closes every connection of the link, so that nothing that
// still waits in a socket is carried out later.
//
// Thread-safety: the link thread only.
// Ownership: owns UCX's worker, co-owns the context.
class UcxWorker {
 public:
  explicit UcxWorker(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;
  virtual ~UcxWorker();
  absl::Status CreateWorker();
  virtual void Progress();
  // False when Progress must be called again before sleeping.
  virtual bool PrepareToSleep() { return ucp_worker_arm(worker_) == UCS_OK; }

 protected:
  ucp_worker_h worker() const { return worker_; }
  bool is_started() const { return worker_ != nullptr; }
  absl::StatusOr<std::string> Address() const;
  // An endpoint at that address, whose loss sets `*error`, which outlives it.
  absl::StatusOr<ucp_ep_h> Connect(const std::string& address, absl::Status* error);
  // Closes it by force, which cancels what is being sent, and frees the requests; waits for them a tenth of a second at
  // most: should UCX not end them all the same, the worker's end does.
  void Close(ucp_ep_h endpoint, std::vector<ucs_status_ptr_t> requests);
  // Ends it before what it may still write to.
  void DestroyWorker();

  // Co-owners: the transport and its other workers.
  const std::shared_ptr<UcxContext> context_;

 private:
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
};

// The lanes of an endpoint: "tcp/lo, cuda_ipc/cuda".
std::string UcxLanes(ucp_ep_h endpoint);

// What UCX transports have in common.
class UcxTransportBase : public Transport {
 public:
  void Progress() override {
    for (UcxWorker* worker : context_->workers) worker->Progress();
  }
  int event_fd() const override { return context_->event_fd; }
  bool PrepareToSleep() override {
    bool ready = true;
    for (UcxWorker* worker : context_->workers) ready &= worker->PrepareToSleep();
    return ready;
  }

 protected:
  explicit UcxTransportBase(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}
  // Co-owners: the pools that it opened and exported.
  const std::shared_ptr<UcxContext> context_;
};

}  // namespace tandem
