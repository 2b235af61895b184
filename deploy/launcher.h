#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/topology.h"

namespace tandem {

// Starts the processes of a topology on this host, passes their output on, starts a dead one again
// after a growing pause, and stops them all. They get a secret of their own, where nothing else keeps
// strangers out (NeedsSecret). One that ends with code 0 was drained: it has left and is not started again. One that
// ends with kStartAgainExitCode starts again at once.
//
// Thread-safety: not thread-safe; one thread calls everything.
// Ownership: owns the child processes. They die with this process, however it ends.
class Launcher {
 public:
  struct Options {
    std::string program_folder;  // Where tandem-router and the workers are.
    // Gets each line that a process writes, with the process's name.
    std::function<void(const std::string& process, const std::string& line)> on_line;
    // Extra environment of one process: "NAME=value".
    std::function<std::vector<std::string>(const std::string& process)> environment;
    absl::Duration first_backoff = absl::Milliseconds(200);
    absl::Duration max_backoff = absl::Seconds(10);
  };
  Launcher(const Topology& topology, Options options);
  ~Launcher();

  // NOT_FOUND when a program is missing.
  absl::Status StartAll();
  // Handles output, deaths and restarts for up to `timeout`.
  void RunFor(absl::Duration timeout);
  // Asks all to drain and end, the router before the workers; kills those that take longer than
  // `grace`, or all that are left once `hurry` says so.
  void StopAll(absl::Duration grace, const std::function<bool()>& hurry = nullptr);

  // 0 when it is not running.
  pid_t pid(const std::string& process) const;
  int restarts(const std::string& process) const;

 private:
  struct Child;
  void Spawn(Child& child);
  void ReadOutput(Child& child);
  // Plans a next start, after a pause that grows while the process ends soon after its starts.
  void PlanStart(Child& child, absl::Time now);
  // Passes the rest of a dead process's output on.
  void CloseOutput(Child& child);
  void Reap();

  const Topology topology_;
  const Options options_;
  std::string secret_setting_;  // "NAME=value" for the processes; empty: they have one.
  std::vector<std::unique_ptr<Child>> children_;
};

}  // namespace tandem
