#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "tests/gpu/gpu_peer.h"

namespace tandem {
namespace {

constexpr int kPatienceMs = 60'000;

// Beside this program.
std::string PeerProgram() {
  char path[4096] = {};
  if (readlink("/proc/self/exe", path, sizeof(path) - 1) < 0) return "gpu_peer";
  const std::string self = path;
  return self.substr(0, self.rfind('/') + 1) + "gpu_peer";
}

// What CUDA_VISIBLE_DEVICES calls the device that this process calls `device`.
std::string VisibleName(int device) {
  const char* mask = getenv("CUDA_VISIBLE_DEVICES");
  if (mask == nullptr) return absl::StrCat(device);
  const std::vector<std::string> names = absl::StrSplit(mask, ',');
  return device < static_cast<int>(names.size()) ? names[device] : absl::StrCat(device);
}

}  // namespace

int64_t MonotonicNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

std::vector<CopyRun> MakeRuns(const PageSet& set, uint64_t pool_bytes) {
  std::mt19937_64 random(set.seed);
  std::vector<int64_t> from(static_cast<int64_t>(pool_bytes) / set.page_bytes), to(from.size());
  std::iota(from.begin(), from.end(), 0);
  std::iota(to.begin(), to.end(), 0);
  std::shuffle(from.begin(), from.end(), random);
  std::shuffle(to.begin(), to.end(), random);
  std::vector<CopyRun> runs;
  for (int64_t i = 0; i < set.pages && i < static_cast<int64_t>(from.size()); ++i) {
    runs.push_back({from[i] * set.page_bytes, to[i] * set.page_bytes, set.page_bytes});
  }
  return runs;
}

std::string FormatExport(const PoolExport& pool) {
  return absl::StrCat(pool.address.empty() ? "-" : pool.address, " ", absl::BytesToHexString(pool.remote_key), " ",
                      pool.base_address, " ", pool.size_bytes);
}

absl::StatusOr<PoolExport> ParseExport(absl::Span<const std::string> words) {
  PoolExport pool{.transport = "nvlink"};
  if (words.size() < 4 || !absl::SimpleAtoi(words[2], &pool.base_address) ||
      !absl::SimpleAtoi(words[3], &pool.size_bytes)) {
    return absl::InvalidArgumentError("no pool");
  }
  pool.address = words[0] == "-" ? "" : words[0];
  pool.remote_key = absl::HexStringToBytes(words[1]);
  return pool;
}

absl::StatusOr<std::unique_ptr<GpuPeer>> GpuPeer::Start(const Options& options) {
  signal(SIGPIPE, SIG_IGN);  // A dead peer is an error of the call.
  std::unique_ptr<GpuPeer> peer(new GpuPeer());
  peer->hides_ = options.sees_own_device_only;
  peer->words_fd_ = memfd_create("tandem-words", 0);  // Goes to the child under the same number.
  if (peer->words_fd_ < 0 || ftruncate(peer->words_fd_, sizeof(SharedWords)) != 0) {
    return absl::ErrnoToStatus(errno, "shared words");
  }
  void* words = mmap(nullptr, sizeof(SharedWords), PROT_READ | PROT_WRITE, MAP_SHARED, peer->words_fd_, 0);
  if (words == MAP_FAILED) return absl::ErrnoToStatus(errno, "shared words");
  peer->words_ = static_cast<SharedWords*>(words);
  int to_peer[2], from_peer[2];
  if (pipe2(to_peer, O_CLOEXEC) != 0 || pipe2(from_peer, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  // Everything that allocates is done before fork: other threads may hold the allocator's lock.
  const std::string program = PeerProgram(), device = absl::StrCat(options.sees_own_device_only ? 0 : options.device),
                    bytes = absl::StrCat(options.pool_bytes), fd = absl::StrCat(peer->words_fd_),
                    visible = VisibleName(options.device);
  peer->pid_ = fork();
  if (peer->pid_ == 0) {
    dup2(to_peer[0], STDIN_FILENO);
    dup2(from_peer[1], STDOUT_FILENO);
    if (options.sees_own_device_only) setenv("CUDA_VISIBLE_DEVICES", visible.c_str(), 1);
    execl(program.c_str(), program.c_str(), device.c_str(), bytes.c_str(), fd.c_str(), nullptr);
    _exit(127);
  }
  close(to_peer[0]);
  close(from_peer[1]);
  peer->to_peer_ = to_peer[1];
  peer->from_peer_ = from_peer[0];
  ASSIGN_OR_RETURN(const std::string line, peer->ReadLine());
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  if (parts[0] != "pool") return absl::InternalError(line);
  ASSIGN_OR_RETURN(peer->pool_, ParseExport(absl::MakeConstSpan(parts).subspan(1)));
  return peer;
}

GpuPeer::~GpuPeer() {
  if (to_peer_ >= 0) close(to_peer_);  // Its end of input ends it.
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (from_peer_ >= 0) close(from_peer_);
  if (words_ != nullptr) munmap(words_, sizeof(SharedWords));
  if (words_fd_ >= 0) close(words_fd_);
}

void GpuPeer::Kill(int signal) { kill(pid_, signal); }

void GpuPeer::WaitForEnd() {
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

absl::Status GpuPeer::Send(const std::string& command) {
  const std::string line = command + "\n";
  if (write(to_peer_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return absl::UnavailableError("the peer process is gone");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GpuPeer::ReadLine() {
  while (true) {
    if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    pollfd wait = {from_peer_, POLLIN, 0};
    if (poll(&wait, 1, kPatienceMs) <= 0) return absl::DeadlineExceededError("the peer process says nothing");
    char bytes[4096];
    const ssize_t got = read(from_peer_, bytes, sizeof(bytes));
    if (got <= 0) return absl::UnavailableError("the peer process is gone");
    buffer_.append(bytes, got);
  }
}

absl::Status GpuPeer::Await() {
  ASSIGN_OR_RETURN(const std::string answer, ReadLine());
  return answer == "ok" ? absl::OkStatus() : absl::InternalError(answer);
}

absl::Status GpuPeer::Say(const std::string& command) {
  RETURN_IF_ERROR(Send(command));
  return Await();
}

namespace {

std::string Words(const PageSet& set) { return absl::StrCat(set.page_bytes, " ", set.pages, " ", set.seed); }

}  // namespace

absl::Status GpuPeer::Fill(uint64_t seed) { return Say(absl::StrCat("fill ", seed)); }
absl::Status GpuPeer::Verify(const PageSet& set, uint64_t content_seed) {
  return Say(absl::StrCat("verify ", Words(set), " ", content_seed));
}
absl::Status GpuPeer::BeginWatch(uint32_t first, uint32_t count) {
  return Send(absl::StrCat("watch ", first, " ", count));
}
absl::Status GpuPeer::BeginPull(const PoolExport& source, const PageSet& set, uint32_t first, uint32_t count,
                                int blocks) {
  RETURN_IF_ERROR(
      Send(absl::StrCat("pull ", Words(set), " ", first, " ", count, " ", blocks, " ", FormatExport(source))));
  return Await();  // It is ready; Await then waits for the last one.
}
absl::Status GpuPeer::AwaitTimes() {
  const int64_t deadline = MonotonicNanoseconds() + int64_t{kPatienceMs} * 1'000'000;
  while (words_->seen < 100) {
    if (MonotonicNanoseconds() > deadline) return absl::DeadlineExceededError("the peer moves nothing");
  }
  return absl::OkStatus();
}
absl::Status GpuPeer::BeginPushing(const PoolExport& destination, const PageSet& set) {
  words_->seen = 0;
  RETURN_IF_ERROR(Say(absl::StrCat("push_forever ", Words(set), " ", FormatExport(destination))));
  return AwaitTimes();
}
absl::Status GpuPeer::BeginPulling(const PoolExport& source, const PageSet& set, int blocks) {
  words_->seen = 0;
  RETURN_IF_ERROR(Say(absl::StrCat("pull_forever ", Words(set), " ", blocks, " ", FormatExport(source))));
  return AwaitTimes();
}
absl::Status GpuPeer::PushOnce(const PoolExport& destination, const PageSet& set) {
  return Say(absl::StrCat("push_once ", Words(set), " ", hides_ ? 1 : 0, " ", FormatExport(destination)));
}
absl::StatusOr<PoolExport> GpuPeer::ExportByUcx(const std::string& kind) {
  RETURN_IF_ERROR(Send(absl::StrCat("ucx_export ", kind)));
  ASSIGN_OR_RETURN(const std::string line, ReadLine());
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  if (parts[0] != "ucx") return absl::InternalError(line);
  RETURN_IF_ERROR(Await());
  ASSIGN_OR_RETURN(PoolExport pool, ParseExport(absl::MakeConstSpan(parts).subspan(1)));
  pool.transport = kind == "ucx_reached" ? "ucx" : kind;
  pool.address = absl::HexStringToBytes(pool.address);
  return pool;
}
absl::Status GpuPeer::VerifyByUcx(const PageSet& set, uint64_t content_seed) {
  return Say(absl::StrCat("ucx_verify ", Words(set), " ", content_seed));
}
absl::StatusOr<GpuPeer::Listening> GpuPeer::BecomeDecode(const std::string& transport) {
  RETURN_IF_ERROR(Send(absl::StrCat("decode ", transport)));
  ASSIGN_OR_RETURN(const std::string line, ReadLine());
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  Listening listening;
  uint64_t incarnation = 0;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &listening.port) || !absl::SimpleAtoi(parts[2], &incarnation)) {
    return absl::InternalError(line);
  }
  RETURN_IF_ERROR(Await());
  listening.incarnation = Incarnation(incarnation);
  return listening;
}
absl::Status GpuPeer::BeginHandingOver(int port, Incarnation decode, const std::string& transport) {
  return Say(absl::StrCat("prefill ", port, " ", decode.value(), " ", transport));
}
absl::Status GpuPeer::VerifySelfTestArea(uint64_t area, uint64_t large_seed, uint64_t small_seed) {
  return Say(absl::StrCat("verify_self_test ", area, " ", large_seed, " ", small_seed));
}

}  // namespace tandem
