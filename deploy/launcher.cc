#include "deploy/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/cluster_secret.h"
#include "common/process.h"
#include "common/secret.h"

namespace tandem {

struct Launcher::Child {
  ProcessPlan plan;
  pid_t pid = 0;
  int output_fd = -1;
  std::string partial_line;
  absl::Time started;
  absl::Time next_start = absl::InfiniteFuture();
  absl::Duration backoff;
  int restarts = 0;
};

Launcher::Launcher(const Topology& topology, Options options) : topology_(topology), options_(std::move(options)) {
  if (NeedsSecret(topology_)) {
    secret_setting_ = absl::StrCat(kDrawnSecretVariable, "=", DrawSecret());
  }
  for (ProcessPlan& plan : topology_.Processes()) {
    auto child = std::make_unique<Child>();
    child->plan = std::move(plan);
    child->backoff = options_.first_backoff;
    children_.push_back(std::move(child));
  }
}

Launcher::~Launcher() { StopAll(absl::ZeroDuration()); }

absl::Status Launcher::StartAll() {
  for (const auto& child : children_) {
    std::string program = absl::StrCat(options_.program_folder, "/", child->plan.program);
    if (std::error_code error; !std::filesystem::exists(program, error))
      return absl::NotFoundError(absl::StrCat(program, " is missing; was it built?"));
  }
  for (const auto& child : children_) Spawn(*child);
  return absl::OkStatus();
}

void Launcher::Spawn(Child& child) {
  child.next_start = absl::InfiniteFuture();
  child.started = Clock::Real().Now();
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    options_.on_line(child.plan.name, absl::StrCat("cannot start: ", strerror(errno)));
    PlanStart(child, child.started);
    return;
  }
  std::string program = absl::StrCat(options_.program_folder, "/", child.plan.program);
  std::string topology = absl::StrCat("--topology=", topology_.file);
  std::string worker = absl::StrCat("--worker=", child.plan.name);
  std::vector<char*> arguments = {program.data(), topology.data()};
  arguments.push_back(worker.data());
  arguments.push_back(nullptr);
  std::vector<std::string> extra =
      options_.environment ? options_.environment(child.plan.name) : std::vector<std::string>();
  const pid_t parent = getpid();
  pid_t pid = fork();
  if (pid == 0) {
    // A process group of its own, so that Ctrl-C at the terminal reaches the launcher only; and
    // death with it.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(pipe_fds[1], STDOUT_FILENO);
    dup2(pipe_fds[1], STDERR_FILENO);
    if (!secret_setting_.empty()) putenv(secret_setting_.data());
    for (std::string& setting : extra) putenv(setting.data());
    execv(program.c_str(), arguments.data());
    _exit(127);
  }
  close(pipe_fds[1]);
  if (pid < 0) {
    close(pipe_fds[0]);
    options_.on_line(child.plan.name, absl::StrCat("cannot start: ", strerror(errno)));
    child.next_start = child.started + child.backoff;
    return;
  }
  fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
  child.pid = pid;
  child.output_fd = pipe_fds[0];
}

void Launcher::ReadOutput(Child& child) {
  char buffer[16 << 10];
  while (child.output_fd >= 0) {
    ssize_t size = read(child.output_fd, buffer, sizeof(buffer));
    if (size <= 0) break;
    child.partial_line.append(buffer, size);
    size_t begin = 0;
    for (size_t end; (end = child.partial_line.find('\n', begin)) != std::string::npos; begin = end + 1) {
      options_.on_line(child.plan.name, child.partial_line.substr(begin, end - begin));
    }
    child.partial_line.erase(0, begin);
  }
}

void Launcher::PlanStart(Child& child, absl::Time now) {
  if (now - child.started > absl::Seconds(10)) child.backoff = options_.first_backoff;
  child.next_start = now + child.backoff;
  child.backoff = std::min(child.backoff * 2, options_.max_backoff);
}

void Launcher::CloseOutput(Child& child) {
  ReadOutput(child);
  if (!child.partial_line.empty()) options_.on_line(child.plan.name, child.partial_line);
  child.partial_line.clear();
  close(child.output_fd);
  child.output_fd = -1;
}

void Launcher::Reap() {
  const absl::Time now = Clock::Real().Now();
  for (const auto& child : children_) {
    int status = 0;
    if (child->pid == 0 || waitpid(child->pid, &status, WNOHANG) != child->pid) continue;
    CloseOutput(*child);
    child->pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
      options_.on_line(child->plan.name, "has left");
      continue;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == kStartAgainExitCode) {
      child->next_start = now;
      ++child->restarts;
      options_.on_line(child->plan.name, "has left and starts again, as it was asked to");
      continue;
    }
    std::string how = WIFSIGNALED(status) ? absl::StrCat("was killed by signal ", WTERMSIG(status))
                                          : absl::StrCat("ended with code ", WEXITSTATUS(status));
    PlanStart(*child, now);
    ++child->restarts;
    options_.on_line(child->plan.name,
                     absl::StrCat(how, "; starts again in ", absl::FormatDuration(child->next_start - now)));
  }
}

void Launcher::RunFor(absl::Duration timeout) {
  const Clock& clock = Clock::Real();
  const absl::Time end = clock.Now() + timeout;
  do {
    std::vector<pollfd> fds;
    for (const auto& child : children_) {
      if (child->output_fd >= 0) fds.push_back({child->output_fd, POLLIN, 0});
    }
    absl::Duration wait = std::min<absl::Duration>(end - clock.Now(), absl::Milliseconds(100));
    poll(fds.data(), fds.size(), static_cast<int>(std::max<int64_t>(0, absl::ToInt64Milliseconds(wait))));
    for (const auto& child : children_) ReadOutput(*child);
    Reap();
    for (const auto& child : children_) {
      if (clock.Now() >= child->next_start) Spawn(*child);
    }
  } while (clock.Now() < end);
}

void Launcher::StopAll(absl::Duration grace, const std::function<bool()>& hurry) {
  const Clock& clock = Clock::Real();
  for (const auto& child : children_) child->next_start = absl::InfiniteFuture();
  auto stop = [&](bool routers) {
    auto is_meant = [&](const Child& child) { return child.pid != 0 && (child.plan.pool < 0) == routers; };
    for (const auto& child : children_) {
      if (is_meant(*child)) kill(child->pid, SIGTERM);
    }
    const absl::Time deadline = clock.Now() + grace;
    bool killed = false;
    while (std::any_of(children_.begin(), children_.end(), [&](const auto& child) { return is_meant(*child); })) {
      const bool over = clock.Now() >= deadline || (hurry && hurry());
      if (over && !std::exchange(killed, true)) {
        for (const auto& child : children_) {
          if (is_meant(*child)) kill(child->pid, SIGKILL);
        }
      }
      pollfd none;
      poll(&none, 0, 5);
      for (const auto& child : children_) {
        ReadOutput(*child);
        int status;
        if (child->pid != 0 && waitpid(child->pid, &status, WNOHANG) == child->pid) {
          CloseOutput(*child);
          child->pid = 0;
        }
      }
    }
  };
  stop(/*routers=*/true);  // First nobody sends work any more.
  stop(/*routers=*/false);
}

pid_t Launcher::pid(const std::string& process) const {
  for (const auto& child : children_) {
    if (child->plan.name == process) return child->pid;
  }
  return 0;
}

int Launcher::restarts(const std::string& process) const {
  for (const auto& child : children_) {
    if (child->plan.name == process) return child->restarts;
  }
  return 0;
}

}  // namespace tandem
