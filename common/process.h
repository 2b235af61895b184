#pragma once

#include <atomic>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "common/process_needs.h"
#include "common/topology.h"

namespace tandem {

// What every server program does around its logic.

// Of one that has ended as it was asked to, and is to be started again: neither 0, after which nobody starts it, nor a
// failure.
inline constexpr int kStartAgainExitCode = 75;

// First call in main: blocks SIGTERM and SIGINT in this thread and those it starts, so that
// AwaitTermination gets them, ignores SIGPIPE, allows as many open files as the machine does, and turns off the
// lock-order checks that Debian's abseil makes on every lock.
void StartProcess();

// While it lives, SIGTERM, SIGINT and RequestTermination end the process at once, with code 0: for what waits for
// others before anything was begun that would have to be finished.
class EndOnSignal {
 public:
  EndOnSignal();
  ~EndOnSignal();

 private:
  std::atomic<bool> is_over_ = false;
  std::thread thread_;
};

// Waits for SIGTERM or SIGINT, or for RequestTermination.
void AwaitTermination();
void RequestTermination();

// The topology of --topology and the process of it that `name` says; ends the program with a
// message and status 2 when either is wrong, or the process is one of another program.
struct ProcessConfig {
  Topology topology;
  ProcessPlan process;
};
ProcessConfig LoadProcessConfigOrExit(const std::string& topology_file, const std::string& name,
                                      absl::string_view program);

// Ends the program with `status`'s text on standard error and exit code 1 unless it is OK.
void ExitUnlessOk(const absl::Status& status);

// Ends a program that was asked to --check: with its needs on standard output and code 0, or the error's text on
// standard error and code 2.
[[noreturn]] void ExitWithNeeds(const absl::StatusOr<ProcessNeeds>& needs);

}  // namespace tandem
