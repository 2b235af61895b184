#include "deploy/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/clock.h"

extern char** environ;

namespace tandem {
namespace {

// One output of a program, read without waiting.
class OutputPipe {
 public:
  OutputPipe() = default;
  ~OutputPipe() {
    CloseWriter();
    CloseReader();
  }
  bool Open() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) return false;
    reader_ = fds[0];
    writer_ = fds[1];
    fcntl(reader_, F_SETFL, O_NONBLOCK);
    return true;
  }
  int reader() const { return reader_; }
  int writer() const { return writer_; }
  void CloseWriter() {
    if (writer_ >= 0) close(writer_);
    writer_ = -1;
  }
  // Appends what is there; at the end the pipe is closed.
  void ReadTo(std::string& text) {
    char buffer[4096];
    while (reader_ >= 0) {
      const ssize_t size = read(reader_, buffer, sizeof(buffer));
      if (size > 0) {
        text.append(buffer, size);
      } else if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
      } else {
        CloseReader();
      }
    }
  }

 private:
  void CloseReader() {
    if (reader_ >= 0) close(reader_);
    reader_ = -1;
  }
  int reader_ = -1, writer_ = -1;
};

// The process, or the error of starting it.
absl::StatusOr<pid_t> Spawn(const std::vector<std::string>& arguments, int output_fd, int errors_fd) {
  std::vector<std::string> copies = arguments;
  std::vector<char*> pointers;
  for (std::string& copy : copies) pointers.push_back(copy.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors_fd, STDERR_FILENO);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, copies[0].c_str(), &actions, nullptr, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == 0) return pid;
  return absl::UnavailableError(absl::StrCat(arguments[0], " cannot be started: ", strerror(error)));
}

}  // namespace

absl::StatusOr<ProgramResult> RunProgram(const std::vector<std::string>& arguments, absl::Duration timeout) {
  OutputPipe output, errors;
  if (!output.Open() || !errors.Open()) return absl::UnavailableError(absl::StrCat("no pipe: ", strerror(errno)));
  absl::StatusOr<pid_t> pid = Spawn(arguments, output.writer(), errors.writer());
  if (!pid.ok()) return pid.status();
  output.CloseWriter();
  errors.CloseWriter();
  const Clock& clock = Clock::Real();
  const absl::Time deadline = clock.Now() + timeout;
  ProgramResult result;
  while (clock.Now() < deadline) {
    int status = 0;
    const pid_t ended = waitpid(*pid, &status, WNOHANG);
    output.ReadTo(result.output);
    errors.ReadTo(result.errors);
    if (ended == *pid) {
      result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      return result;
    }
    if (ended < 0 && errno != EINTR) {
      return absl::InternalError(absl::StrCat("how ", arguments[0], " ended is not known: ", strerror(errno)));
    }
    pollfd readable[] = {{output.reader(), POLLIN, 0}, {errors.reader(), POLLIN, 0}};
    poll(readable, 2, /*timeout ms=*/5);  // Its end announces itself on no descriptor.
  }
  kill(*pid, SIGKILL);
  while (waitpid(*pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return absl::DeadlineExceededError(absl::StrCat(arguments[0], " did not end within ", absl::FormatDuration(timeout)));
}

}  // namespace tandem
