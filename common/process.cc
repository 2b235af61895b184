#include "common/process.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/log.h"

namespace tandem {
namespace {

sigset_t TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

void StartProcess() {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  signal(SIGPIPE, SIG_IGN);
  // Each connection takes a file descriptor, and the usual soft limit is that of programs that use select.
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  sigset_t signals = TerminationSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

EndOnSignal::EndOnSignal() {
  thread_ = std::thread([this] {
    const sigset_t signals = TerminationSignals();
    const timespec pause = absl::ToTimespec(absl::Milliseconds(20));
    while (!is_over_) {
      const int signal = sigtimedwait(&signals, nullptr, &pause);
      if (signal <= 0) continue;
      if (!is_over_) _exit(0);
      RequestTermination();  // It is for who comes after.
    }
  });
}

EndOnSignal::~EndOnSignal() {
  is_over_ = true;
  thread_.join();
}

void AwaitTermination() {
  sigset_t signals = TerminationSignals();
  int signal = 0;
  sigwait(&signals, &signal);
}

void RequestTermination() { kill(getpid(), SIGTERM); }

ProcessConfig LoadProcessConfigOrExit(const std::string& topology_file, const std::string& name,
                                      absl::string_view program) {
  if (topology_file.empty() || name.empty()) {
    fprintf(stderr, "usage: %s --topology=FILE --worker=NAME\n", std::string(program).c_str());
    exit(2);
  }
  absl::StatusOr<Topology> topology = Topology::Load(topology_file);
  absl::Status status = topology.status();
  if (status.ok()) {
    absl::StatusOr<ProcessPlan> process = topology->FindProcess(name);
    if (process.ok() && process->program != program) {
      process = absl::InvalidArgumentError(absl::StrCat(name, " is a process of ", process->program));
    }
    if (process.ok()) {
      SetLogProcessName(name);
      return {*std::move(topology), *std::move(process)};
    }
    status = process.status();
  }
  ExitWithNeeds(status);
}

void ExitWithNeeds(const absl::StatusOr<ProcessNeeds>& needs) {
  if (needs.ok()) {
    printf("%s\n", FormatNeeds(*needs).c_str());
    exit(0);
  }
  fprintf(stderr, "%s\n", std::string(needs.status().message()).c_str());
  exit(2);
}

void ExitUnlessOk(const absl::Status& status) {
  if (status.ok()) return;
  LogError("cannot start", {{"cause", status.message()}});
  exit(1);
}

}  // namespace tandem
