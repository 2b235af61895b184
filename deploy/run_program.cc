#include "deploy/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/clock.h"

extern char** environ;

namespace tandem {
namespace {

// Starts the program with both outputs on `output_fd`; an errno value.
int Spawn(const std::vector<std::string>& arguments, int output_fd, pid_t* pid) {
  std::vector<std::string> copies = arguments;
  std::vector<char*> pointers;
  for (std::string& copy : copies) pointers.push_back(copy.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDERR_FILENO);
  const int error = posix_spawn(pid, copies[0].c_str(), &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

// Appends what comes until the other end closes; false when the deadline passed first.
bool ReadToEnd(int fd, absl::Time deadline, std::string& output) {
  const Clock& clock = Clock::Real();
  char buffer[4096];
  while (clock.Now() < deadline) {
    pollfd readable{fd, POLLIN, 0};
    const int64_t wait = std::min<int64_t>(1000, absl::ToInt64Milliseconds(deadline - clock.Now()) + 1);
    if (poll(&readable, 1, static_cast<int>(wait)) <= 0) continue;
    const ssize_t size = read(fd, buffer, sizeof(buffer));
    if (size <= 0) return true;
    output.append(buffer, size);
  }
  return false;
}

}  // namespace

absl::StatusOr<ProgramResult> RunProgram(const std::vector<std::string>& arguments, absl::Duration timeout) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return absl::UnavailableError(absl::StrCat("no pipe: ", strerror(errno)));
  pid_t pid = 0;
  const int error = Spawn(arguments, pipe_fds[1], &pid);
  close(pipe_fds[1]);
  if (error != 0) {
    close(pipe_fds[0]);
    return absl::UnavailableError(absl::StrCat(arguments[0], " cannot be started: ", strerror(error)));
  }
  ProgramResult result;
  const bool ended = ReadToEnd(pipe_fds[0], Clock::Real().Now() + timeout, result.output);
  close(pipe_fds[0]);
  if (!ended) kill(pid, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  if (!ended) {
    return absl::DeadlineExceededError(
        absl::StrCat(arguments[0], " did not end within ", absl::FormatDuration(timeout)));
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace tandem
