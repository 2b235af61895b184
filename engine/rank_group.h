#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace tandem {

// The processes on one host that compute a model together, one for each rank (tensor parallelism): rank 0 plans, and
// the others follow.
//
// None can go on without one of the others. That one is lost is told to `on_lost`, on a thread that watches, also
// while the caller waits for a device that waits for that rank; calls return UNAVAILABLE then. One that says nothing
// for two minutes where it should is lost, too.
//
// The ranks meet at a name that every process of the host may take; only those of the same user are let in.
//
// Thread-safety: one thread at a time. Ownership: owns sockets and the thread.
class RankGroup {
 public:
  struct Options {
    std::string name;  // Of the group; no other on this host has it.
    int rank = 0;
    int size = 1;
    absl::Duration timeout = absl::Minutes(1);
    std::function<void(const absl::Status&)> on_lost = EndProcess;
  };
  // Returns when rank 0 has all others, or has taken this one. DEADLINE_EXCEEDED names those that are missing;
  // ALREADY_EXISTS: another process is this rank; FAILED_PRECONDITION: rank 0 has another number of ranks.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Join(Options options);
  // Without a farewell the others take this rank for lost.
  ~RankGroup();

  int rank() const { return options_.rank; }
  int size() const { return options_.size; }

  // To all others; rank 0 calls.
  absl::Status Broadcast(absl::string_view message);
  // Rank 0 ends as it should: tells the others, and waits until they have left, for some seconds. No call after it.
  void SayFarewell();
  // The next message of rank 0, or nothing when it ends; the others call.
  absl::StatusOr<std::optional<std::string>> Receive();
  // Every rank's message, in order of ranks; all call.
  absl::StatusOr<std::vector<std::string>> Exchange(absl::string_view message);

  // Logs the cause and ends the process at once: what callers do who cannot return an error.
  [[noreturn]] static void EndProcess(const absl::Status& cause);

 private:
  explicit RankGroup(Options options);
  absl::Status AcceptOthers();
  absl::Status ConnectToFirst();
  // Closes sockets that are no rank's of this group.
  void Welcome(int socket);
  void Watch();
  void StopWatching();
  absl::Status Send(int rank, absl::string_view message);
  // Waits as long as it takes for a first byte, or only for kPatience.
  absl::StatusOr<std::optional<std::string>> ReceiveFrom(int rank, bool is_patient);

  const Options options_;
  std::vector<int> sockets_;  // By rank; rank 0 has one to each, the others to rank 0. -1: none.
  std::atomic<bool> is_ending_ = false;
  int wake_fd_ = -1;
  std::thread watcher_;
};

}  // namespace tandem
