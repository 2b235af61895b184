#include "kvtransfer/shm/shm_transport.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/units.h"

namespace tandem {
namespace {

constexpr char kPoolName[] = "tandem-kv";

class ShmRemotePool final : public RemotePool {
 public:
  ShmRemotePool(uint8_t* base, uint64_t size_bytes) : base_(base), size_bytes_(size_bytes) {}
  ~ShmRemotePool() override { munmap(base_, size_bytes_); }

  absl::Status Write(WriteOrder order) override {
    RETURN_IF_ERROR(CheckRuns(order.runs, size_bytes_));
    RETURN_IF_ERROR(AddSums(HostMemory(), order));
    for (const CopyRun& run : order.runs) {
      std::memcpy(base_ + run.destination, order.source_base + run.source, run.bytes);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<bool> PollFlushed() override {
    // The Commit that follows travels through the kernel; this keeps the stores before it.
    std::atomic_thread_fence(std::memory_order_release);
    return true;
  }

 private:
  uint8_t* const base_;
  const uint64_t size_bytes_;
};

class ShmTransport final : public Transport {
 public:
  explicit ShmTransport(const ShmPool* pool) : pool_(pool) {}
  absl::string_view name() const override { return "shm"; }

  bool same_host_only() const override { return true; }

  absl::StatusOr<std::unique_ptr<ExportedPool>> Export(uint8_t* base, uint64_t size_bytes) override {
    if (pool_ == nullptr || base != pool_->base() || size_bytes != pool_->size_bytes()) {
      return absl::FailedPreconditionError("the pool is no shared memory");
    }
    return std::make_unique<MappedExport>(PoolExport{.transport = "shm",
                                                     .address = absl::StrCat("/proc/", getpid(), "/fd/", pool_->fd()),
                                                     .size_bytes = size_bytes});
  }

  absl::StatusOr<std::unique_ptr<RemotePool>> Open(const PoolExport& pool) override {
    int fd = open(pool.address.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) {
      return absl::UnavailableError(absl::StrCat("cannot open ", pool.address, ": ", strerror(errno),
                                                 " (is the peer on this host, under the same user?)"));
    }
    absl::Cleanup close_fd = [fd] { close(fd); };
    // The path came from another process: nothing but a pool is written to.
    char target[64] = {};
    if (readlink(pool.address.c_str(), target, sizeof(target) - 1) < 0 ||
        !absl::StartsWith(target, absl::StrCat("/memfd:", kPoolName))) {
      return absl::UnavailableError(absl::StrCat(pool.address, " is no KV pool"));
    }
    struct stat info;
    if (fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < pool.size_bytes || pool.size_bytes == 0) {
      return absl::UnavailableError(
          absl::StrCat(pool.address, " is not the exported pool of ", pool.size_bytes, " bytes"));
    }
    // Not populated: that would hold up all links for as long as a large pool takes.
    void* base = mmap(nullptr, pool.size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
      return absl::UnavailableError(absl::StrCat("cannot map ", pool.address, ": ", strerror(errno)));
    return std::unique_ptr<RemotePool>(std::make_unique<ShmRemotePool>(static_cast<uint8_t*>(base), pool.size_bytes));
  }

 private:
  const ShmPool* const pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShmPool>> ShmPool::Create(uint64_t size_bytes) {
  int fd = memfd_create(kPoolName, MFD_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, "cannot create shared memory");
  absl::Cleanup close_fd = [fd] { close(fd); };
  // fallocate and not ftruncate: too little memory is an error here, not a signal at some later
  // write.
  if (int error = posix_fallocate(fd, 0, static_cast<off_t>(size_bytes)); error != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot get ", FormatBytes(static_cast<int64_t>(size_bytes)),
                                                     " of shared memory: ", strerror(error)));
  }
  void* base = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (base == MAP_FAILED) return absl::ErrnoToStatus(errno, "cannot map shared memory");
  std::move(close_fd).Cancel();
  return std::unique_ptr<ShmPool>(new ShmPool(fd, static_cast<uint8_t*>(base), size_bytes));
}

ShmPool::~ShmPool() {
  munmap(base_, size_bytes_);
  close(fd_);
}

std::unique_ptr<Transport> NewShmTransport(const ShmPool* pool) { return std::make_unique<ShmTransport>(pool); }

}  // namespace tandem
