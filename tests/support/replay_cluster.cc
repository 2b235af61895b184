#include "tests/support/replay_cluster.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/http_client.h"

namespace tandem {
namespace {

bool Await(absl::Duration patience, const std::function<bool()>& condition) {
  const absl::Time deadline = Clock::Real().Now() + patience;
  while (!condition()) {
    if (Clock::Real().Now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

std::string NewFiles() {
  static int count = 0;
  const char* const folder = std::getenv("TEST_TMPDIR");
  return absl::StrCat(folder != nullptr ? folder : "/tmp", "/tandem_replay_", getpid(), "_", count++);
}

// Workers must know the router's port before it is up.
int FreePort() {
  const int probe = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  bind(probe, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(probe, reinterpret_cast<sockaddr*>(&address), &size);
  close(probe);
  return ntohs(address.sin_port);
}

}  // namespace

Program::Program(const std::string& name, std::vector<std::string> arguments, const std::string& log) {
  arguments.insert(arguments.begin(), absl::StrCat(TANDEM_BINARY_DIR "/bin/", name));
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (posix_spawn(&pid_, argv[0], &files, nullptr, argv.data(), environ) != 0) pid_ = -1;
  posix_spawn_file_actions_destroy(&files);
  EXPECT_GT(pid_, 0) << argv[0];
}

Program::~Program() {
  if (pid_ <= 0) return;
  kill(pid_, SIGTERM);
  if (Await(absl::Seconds(20), [this] { return waitpid(pid_, nullptr, WNOHANG) == pid_; })) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

int64_t Program::ResidentBytes() const {
  int64_t pages = 0, resident = 0;
  std::ifstream(absl::StrCat("/proc/", pid_, "/statm")) >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

ReplayCluster::ReplayCluster(const std::vector<std::string>& pace, const std::string& router_extra)
    : files_(NewFiles()), grpc_address_(absl::StrCat("127.0.0.1:", FreePort())) {
  const std::string topology = files_ + ".yaml";
  std::ofstream(topology) << "model: {path: " << SmolLm2Path() << ", served_name: replay}\nrouter: {listen: \""
                          << grpc_address_ << "\", http_listen: \"127.0.0.1:0\", metrics_listen: \"\", "
                          << "conditional_prefill_tokens: 0" << router_extra
                          << "}\npools:\n  - {name: prefill, role: prefill}\n  - {name: decode, role: decode}\n";
  router_ = std::make_unique<Program>(
      "tandem-router", std::vector<std::string>{"--topology=" + topology, "--worker=router"}, files_ + ".log");
  std::vector<std::string> arguments = {grpc_address_, SmolLm2Path()};
  arguments.insert(arguments.end(), pace.begin(), pace.end());
  workers_ = std::make_unique<Program>("replay_worker", arguments, files_ + ".workers.log");
}

ReplayCluster::~ReplayCluster() {
  workers_.reset();
  router_.reset();
  for (const char* end : {".yaml", ".log", ".workers.log"}) unlink((files_ + end).c_str());
}

bool ReplayCluster::AwaitReady() {
  constexpr absl::Duration kPatience = absl::Seconds(20);
  if (!Await(kPatience, [this] { return absl::StrContains(Output(), " http="); })) return false;
  const std::string said = Output();
  const size_t at = said.find(" http=") + 6;
  http_address_ = said.substr(at, said.find(' ', at) - at);
  return Await(kPatience, [this] { return HttpClient(http_address_).Ask("GET", "/ready").status == 200; });
}

std::string ReplayCluster::Output() const {
  std::stringstream text;
  text << std::ifstream(files_ + ".log").rdbuf();
  return text.str();
}

}  // namespace tandem
