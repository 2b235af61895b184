// The second process of tests and benchmarks on GPUs: see GpuPeer, which starts and drives it.
//   gpu_peer DEVICE POOL_BYTES WORDS_FD

#include <cuda_runtime_api.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/gpu_transports.h"
#include "kvtransfer/nvlink/nvlink_transport.h"
#include "kvtransfer/self_test.h"
#include "tests/gpu/gpu_peer.h"
#include "tests/gpu/pool_check.h"
#include "tests/support/link_ends.h"

namespace tandem {
namespace {

constexpr int64_t kPatienceNs = 20'000'000'000;

void Answer(const std::string& line) {
  printf("%s\n", line.c_str());
  fflush(stdout);
}

// False when it takes too long.
bool AwaitValue(const std::atomic<uint32_t>& word, uint32_t value) {
  const int64_t deadline = MonotonicNanoseconds() + kPatienceNs;
  while (static_cast<int32_t>(word.load(std::memory_order_acquire) - value) < 0) {
    if (MonotonicNanoseconds() > deadline) return false;
  }
  return true;
}

constexpr uint64_t kEndlessHandover = 1'000'000'000;

class Peer {
 public:
  absl::Status Start(int device, uint64_t pool_bytes, int words_fd) {
    device_ = device;
    void* words = mmap(nullptr, sizeof(SharedWords), PROT_READ | PROT_WRITE, MAP_SHARED, words_fd, 0);
    if (words == MAP_FAILED) return absl::InternalError("no shared words");
    words_ = static_cast<SharedWords*>(words);
    RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device), "cudaSetDevice"));
    ASSIGN_OR_RETURN(driver_, NewCudaDriver());
    ASSIGN_OR_RETURN(memory_, NewCudaMemory(device));
    ASSIGN_OR_RETURN(pool_, GpuPool::Create(*driver_, device, pool_bytes, PoolReach::kHost));
    RETURN_IF_ERROR(
        CudaStatus(cudaHostRegister(words, sizeof(SharedWords), cudaHostRegisterMapped), "cudaHostRegister"));
    ASSIGN_OR_RETURN(transport_, NvlinkTransport::Create(*driver_, {.device = device, .pool = pool_.get()}));
    ASSIGN_OR_RETURN(export_, transport_->Export(pool_->base(), pool_->bytes()));
    Answer(absl::StrCat("pool ", FormatExport(export_->description())));
    return absl::OkStatus();
  }

  absl::Status Obey(const std::string& line) {
    words_of_line_ = absl::StrSplit(line, ' ');
    next_ = 1;
    const std::string& command = words_of_line_[0];
    if (command == "fill") return FillPool(*pool_, Number());
    if (command == "poison") return PoisonPool(*pool_);
    if (command == "verify") {
      const PageSet set = Set();
      return CheckPool(*pool_, MakeRuns(set, pool_->bytes()), Number());
    }
    if (command == "watch") {
      const auto first = static_cast<uint32_t>(Number()), count = static_cast<uint32_t>(Number());
      return WatchFlags(first, count);
    }
    if (command == "pull") return Pull();
    if (command == "push_forever") return PushForever();
    if (command == "ucx_export") return ExportByUcx();
    if (command == "decode") return BecomeDecode();
    if (command == "prefill") return HandOverForever();
    if (command == "ucx_verify") {
      const PageSet set = Set();
      return CheckPool(ucx_pool_, MakeRuns(set, ucx_pool_.bytes), Number());
    }
    if (command == "pull_forever") return PullForever();
    if (command == "push_once") return PushOnce();
    if (command == "verify_self_test") {
      const uint64_t area = Number(), large = Number(), small = Number();
      ASSIGN_OR_RETURN(const bool good, VerifySelfTest(*memory_, pool_->base() + area, large, small));
      return good ? absl::OkStatus() : absl::InternalError("other bytes arrived");
    }
    return absl::InternalError(absl::StrCat("unknown command ", command));
  }

  // Moves UCX's connections forward while there is no command.
  void Progress() {
    if (ucx_ != nullptr) ucx_->Progress();
  }
  bool must_progress() const { return ucx_ != nullptr; }

 private:
  std::string Word() { return next_ < words_of_line_.size() ? words_of_line_[next_++] : ""; }
  uint64_t Number() {
    uint64_t number = 0;
    (void)absl::SimpleAtoi(Word(), &number);
    return number;
  }
  PageSet Set() {
    PageSet set;
    set.page_bytes = static_cast<int64_t>(Number());
    set.pages = static_cast<int64_t>(Number());
    set.seed = Number();
    return set;
  }
  absl::StatusOr<std::unique_ptr<PagePusher>> NewPusher() const {
    ASSIGN_OR_RETURN(std::shared_ptr<PageCopier> copier, PageCopier::Create({.device = device_, .max_lists = 2}));
    return PagePusher::Create({.device = device_}, std::move(copier));
  }
  absl::StatusOr<std::unique_ptr<NvlinkPool>> OpenNext() {
    ASSIGN_OR_RETURN(const PoolExport pool, ParseExport(absl::MakeConstSpan(words_of_line_).subspan(next_)));
    return transport_->OpenPool(pool);
  }
  void NoteSeen(uint32_t value) {
    words_->seen_at_ns[value % 4096] = MonotonicNanoseconds();
    words_->seen.store(value, std::memory_order_release);
  }

  absl::Status WatchFlags(uint32_t first, uint32_t count) {
    for (uint32_t value = first; value != first + count; ++value) {
      if (!AwaitValue(words_->flag, value)) return absl::DeadlineExceededError(absl::StrCat("no flag ", value));
      NoteSeen(value);
    }
    return absl::OkStatus();
  }

  absl::Status Pull() {
    const PageSet set = Set();
    const auto first = static_cast<uint32_t>(Number()), count = static_cast<uint32_t>(Number());
    const auto blocks = static_cast<int>(Number());
    ASSIGN_OR_RETURN(const std::unique_ptr<NvlinkPool> source, OpenNext());
    ASSIGN_OR_RETURN(const std::unique_ptr<PagePusher> pusher, NewPusher());
    const std::vector<CopyRun> runs = MakeRuns(set, pool_->bytes());
    const CopyChoice choice = {blocks == 0 ? CopyMethod::kCopyEngine : CopyMethod::kKernel, blocks};
    Answer("ok");
    for (uint32_t value = first; value != first + count; ++value) {
      if (!AwaitValue(words_->doorbell, value)) return absl::DeadlineExceededError(absl::StrCat("no ring ", value));
      RETURN_IF_ERROR(pusher
                          ->Push(runs,
                                 {.source = {source->base(), pool_->bytes()},
                                  .destination = {pool_->base(), pool_->bytes()},
                                  .flag = reinterpret_cast<uint32_t*>(&words_->flag),
                                  .flag_value = value},
                                 choice)
                          .status());
      if (!AwaitValue(words_->flag, value)) return absl::DeadlineExceededError(absl::StrCat("no flag ", value));
      NoteSeen(value);
    }
    return absl::OkStatus();
  }

  absl::Status PushForever() {
    const PageSet set = Set();
    ASSIGN_OR_RETURN(const std::unique_ptr<NvlinkPool> destination, OpenNext());
    const std::vector<CopyRun> runs = MakeRuns(set, pool_->bytes());
    Answer("ok");
    while (true) {  // Until it is killed.
      absl::Status status = destination->Push(pool_->base(), runs, nullptr, 0).status();
      if (status.ok()) ++words_->seen;
      if (!status.ok() && !absl::IsUnavailable(status)) return status;
    }
  }

  absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(const std::string& name) {
    ASSIGN_OR_RETURN(auto transports, MakeGpuTransports({name}, {driver_.get(), memory_.get(), pool_.get(), nullptr}));
    return std::move(transports[0]);
  }

  absl::Status ExportByUcx() {
    const std::string kind = Word();
    ASSIGN_OR_RETURN(ucx_, MakeTransport(kind == "ucx_reached" ? "ucx" : kind));
    ucx_pool_ = DeviceBytes(*pool_);
    if (kind == "ucx_reached") {
      ASSIGN_OR_RETURN(reached_, memory_->Allocate(pool_->bytes(), PoolMemory::Place::kPool));
      ucx_pool_.base = reached_->base();
    }
    RETURN_IF_ERROR(PoisonPool(ucx_pool_));
    ASSIGN_OR_RETURN(ucx_export_, ucx_->Export(ucx_pool_.base, ucx_pool_.bytes));
    PoolExport words = ucx_export_->description();
    words.address = absl::BytesToHexString(words.address);
    Answer(absl::StrCat("ucx ", FormatExport(words)));
    return absl::OkStatus();
  }

  absl::Status BecomeDecode() {
    ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, MakeTransport(Word()));
    const Incarnation incarnation(static_cast<uint64_t>(getpid()));
    DecodeEnd::Options options{.layout = kGpuLayout, .incarnation = incarnation, .pool = pool_->base()};
    options.memory = memory_.get();
    options.frees_received = true;
    decode_ = std::make_unique<DecodeEnd>(std::move(transport), options);
    Answer(absl::StrCat("decode ", decode_->port(), " ", incarnation.value()));
    return absl::OkStatus();
  }

  absl::Status HandOverForever() {
    const auto port = static_cast<int>(Number());
    const Incarnation decode(Number());
    ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, MakeTransport(Word()));
    PrefillEnd::Options options;
    options.layout = kGpuLayout;
    options.incarnation = Incarnation(static_cast<uint64_t>(getpid()));
    options.pool = pool_->base();
    options.memory = memory_.get();
    PrefillEnd prefill(std::move(transport), options);
    prefill.LinkTo(port, decode);
    if (!prefill.AwaitUp()) return absl::InternalError("no link");
    Answer("ok");
    // One that never ends: pages are granted at any time.
    prefill.HandOver(decode, HandoverId(kEndlessHandover), kGpuHandoverTokens, /*finishes=*/false);
    // Two at a time, until it is killed.
    for (size_t started = 0;; ++started) {
      prefill.HandOver(decode, HandoverId(started + 1), kGpuHandoverTokens);
      if (!prefill.Await([&] { return prefill.outcomes_.size() + 1 >= started; })) return absl::InternalError("hangs");
    }
  }

  absl::Status PullForever() {
    const PageSet set = Set();
    const auto blocks = static_cast<int>(Number());
    ASSIGN_OR_RETURN(const std::unique_ptr<NvlinkPool> source, OpenNext());
    ASSIGN_OR_RETURN(const std::unique_ptr<PagePusher> pusher, NewPusher());
    const std::vector<CopyRun> runs = MakeRuns(set, pool_->bytes());
    Answer("ok");
    while (true) {  // Until it is killed.
      RETURN_IF_ERROR(
          pusher
              ->Push(runs, {.source = {source->base(), pool_->bytes()}, .destination = {pool_->base(), pool_->bytes()}},
                     CopyChoice{CopyMethod::kKernel, blocks})
              .status());
      RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(pusher->stream()), "pull"));
      ++words_->seen;
    }
  }

  absl::Status PushOnce() {
    const PageSet set = Set();
    const bool must_hide = Number() != 0;
    ASSIGN_OR_RETURN(const std::unique_ptr<NvlinkPool> destination, OpenNext());
    if (destination->sees_device() == must_hide) return absl::InternalError("sees the wrong devices");
    ASSIGN_OR_RETURN(const CopyChoice choice,
                     destination->Push(pool_->base(), MakeRuns(set, pool_->bytes()), nullptr, 0));
    if (must_hide && choice.method != CopyMethod::kKernel) return absl::InternalError("not by kernel");
    const int64_t deadline = MonotonicNanoseconds() + kPatienceNs;
    while (true) {
      ASSIGN_OR_RETURN(const bool flushed, destination->PollFlushed());
      if (flushed) return absl::OkStatus();
      if (MonotonicNanoseconds() > deadline) return absl::DeadlineExceededError("the push does not end");
    }
  }

  int device_ = 0;
  SharedWords* words_ = nullptr;
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<PoolMemory> memory_;
  std::unique_ptr<GpuPool> pool_;
  std::unique_ptr<NvlinkTransport> transport_;
  std::unique_ptr<ExportedPool> export_;
  std::unique_ptr<Transport> ucx_;
  std::unique_ptr<PoolBuffer> reached_;
  DeviceBytes ucx_pool_;
  std::unique_ptr<ExportedPool> ucx_export_;
  std::unique_ptr<DecodeEnd> decode_;
  std::vector<std::string> words_of_line_;
  size_t next_ = 1;
};

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: gpu_peer DEVICE POOL_BYTES WORDS_FD\n");
    return 2;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // It may be in the midst of something that never ends.
  tandem::Peer peer;
  absl::Status status = peer.Start(atoi(argv[1]), strtoull(argv[2], nullptr, 10), atoi(argv[3]));
  if (!status.ok()) {
    tandem::Answer(std::string(status.message()));
    return 1;
  }
  std::string line;
  while (true) {
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    while (peer.must_progress() && std::cin.rdbuf()->in_avail() <= 0 && poll(&input, 1, 0) == 0) peer.Progress();
    if (!std::getline(std::cin, line)) return 0;
    status = peer.Obey(line);
    tandem::Answer(status.ok() ? "ok" : status.ToString());
  }
}
