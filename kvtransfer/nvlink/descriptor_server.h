#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tandem {

// Hands a file descriptor to other processes of this user on this host. GPU memory has no name under which they could
// open it, and taking it out of this process (pidfd_getfd) is forbidden in most containers.
//
// The socket is an abstract one: it has no place in the file system, ends with this process, and is seen by processes
// of the same network namespace.
//
// Thread-safety: thread-safe.
// Ownership: owns its thread and a duplicate of the descriptor, which keeps the memory alive as long.
class DescriptorServer {
 public:
  // INTERNAL: what the system said.
  static absl::StatusOr<std::unique_ptr<DescriptorServer>> Start(int fd);
  ~DescriptorServer();
  // What FetchDescriptor asks with.
  const std::string& address() const { return address_; }

 private:
  DescriptorServer() = default;
  void Main();

  // All set by Start.
  int fd_ = -1, listener_ = -1, stop_event_ = -1;
  std::string address_;
  std::thread thread_;
};

// The descriptor behind `address`, which the caller closes. UNAVAILABLE: nobody answers there within `timeout`, or the
// one who does belongs to another user.
absl::StatusOr<int> FetchDescriptor(const std::string& address, absl::Duration timeout);

}  // namespace tandem
