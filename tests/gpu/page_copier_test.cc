// The page copy kernel and GPU pools on a real device. With two devices that reach each other the destination is the
// other's memory, else the same one's.

#include "kvtransfer/nvlink/page_copier.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtransfer/nvlink/cuda_driver.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/cuda_memory.h"
#include "kvtransfer/nvlink/gpu_pool.h"
#include "kvtransfer/page_sums.h"
#include "tests/gpu/gpu_presence.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr uint8_t kPoison = 0xA5;

class PageCopierTest : public testing::Test {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    destination_device_ = gpus.peer_device;
    ASSERT_OK_AND_ASSIGN(driver_, NewCudaDriver());
    ASSERT_OK_AND_ASSIGN(source_, GpuPool::Create(*driver_, 0, kPoolBytes, PoolReach::kHost));
    ASSERT_OK_AND_ASSIGN(destination_, GpuPool::Create(*driver_, destination_device_, kPoolBytes, PoolReach::kHost));
    ASSERT_OK_AND_ASSIGN(ShareableHandle handle, destination_->Export());
    ASSERT_OK_AND_ASSIGN(imported_, ImportedPool::Import(*driver_, handle, destination_->bytes(), 0));
    close(handle.fd);
    ASSERT_OK_AND_ASSIGN(copier_, PageCopier::Create({.max_runs = 1 << 16}));
    ASSERT_THAT(Cuda(cudaSetDevice(destination_device_)), IsOk());
    ASSERT_THAT(Cuda(cudaStreamCreateWithFlags(&reader_, cudaStreamNonBlocking)), IsOk());
    ASSERT_THAT(Cuda(cudaSetDevice(0)), IsOk());
    ASSERT_THAT(Cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)), IsOk());
    ASSERT_THAT(Cuda(cudaHostAlloc(reinterpret_cast<void**>(&flag_), sizeof(uint32_t), cudaHostAllocMapped)), IsOk());
    *flag_ = 0;
  }
  void TearDown() override {
    copier_.reset();
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    if (reader_ != nullptr) cudaStreamDestroy(reader_);
    if (flag_ != nullptr) cudaFreeHost(flag_);
  }

  static absl::Status Cuda(cudaError_t error) { return CudaStatus(error, "CUDA"); }
  PageCopier::Push MakePush(uint32_t value, uint64_t offset = 0) {
    return {.source = {source_->base(), source_->bytes(), offset},
            .destination = {imported_->base(), imported_->bytes(), offset},
            .flag = flag_,
            .flag_value = value};
  }
  // Uploads the list and pushes it once.
  void Push(const std::vector<CopyRun>& runs, uint32_t value) {
    ASSERT_OK_AND_ASSIGN(PageCopier::List list, copier_->Upload(runs, stream_));
    ASSERT_THAT(copier_->Enqueue(list, MakePush(value)), IsOk());
  }
  // Reads with the device that owns the destination: its mapping is that device's alone.
  void Read(int64_t offset, int64_t bytes, uint8_t* to, cudaStream_t stream) {
    ASSERT_THAT(Cuda(cudaSetDevice(destination_device_)), IsOk());
    ASSERT_THAT(Cuda(cudaMemcpyAsync(to, destination_->base() + offset, bytes, cudaMemcpyDefault, stream)), IsOk());
    ASSERT_THAT(Cuda(cudaStreamSynchronize(stream)), IsOk());
    ASSERT_THAT(Cuda(cudaSetDevice(0)), IsOk());
  }
  bool AwaitFlag(uint32_t value) {
    const absl::Time deadline = Clock::Real().Now() + absl::Seconds(20);
    while (__atomic_load_n(flag_, __ATOMIC_ACQUIRE) != value) {
      if (Clock::Real().Now() > deadline) return false;
    }
    return true;
  }
  // Fresh random bytes in the source, poison in the destination.
  std::vector<uint8_t> Fill(std::mt19937_64& random) {
    std::vector<uint8_t> bytes(kPoolBytes);
    for (size_t i = 0; i < bytes.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&bytes[i], &word, 8);
    }
    EXPECT_THAT(Cuda(cudaMemcpy(source_->base(), bytes.data(), kPoolBytes, cudaMemcpyDefault)), IsOk());
    EXPECT_THAT(Cuda(cudaMemset(imported_->base(), kPoison, kPoolBytes)), IsOk());
    EXPECT_THAT(Cuda(cudaDeviceSynchronize()), IsOk());
    return bytes;
  }
  // Pushes and compares the whole destination: each byte of a run arrived, and no other was touched.
  void PushAndCompare(const std::vector<CopyRun>& runs, std::mt19937_64& random, uint32_t value) {
    const std::vector<uint8_t> bytes = Fill(random);
    Push(runs, value);
    Compare(runs, bytes, value);
  }
  void Compare(const std::vector<CopyRun>& runs, const std::vector<uint8_t>& bytes, uint32_t value) {
    ASSERT_TRUE(AwaitFlag(value));
    std::vector<uint8_t> wanted(kPoolBytes, kPoison), got(kPoolBytes);
    for (const CopyRun& run : runs) std::copy_n(&bytes[run.source], run.bytes, &wanted[run.destination]);
    Read(0, kPoolBytes, got.data(), reader_);
    EXPECT_TRUE(wanted == got);
  }
  // Pages of `bytes` in random order, in both pools.
  static std::vector<CopyRun> ShuffledPages(int64_t bytes, int count, std::mt19937_64& random) {
    const int64_t pages = static_cast<int64_t>(kPoolBytes) / bytes;
    std::vector<int64_t> from(pages), to(pages);
    for (int64_t i = 0; i < pages; ++i) from[i] = to[i] = i;
    std::shuffle(from.begin(), from.end(), random);
    std::shuffle(to.begin(), to.end(), random);
    std::vector<CopyRun> runs;
    for (int64_t i = 0; i < std::min<int64_t>(count, pages); ++i)
      runs.push_back({from[i] * bytes, to[i] * bytes, bytes});
    return runs;
  }

  static constexpr uint64_t kPoolBytes = 32 << 20;
  int destination_device_ = 0;
  std::unique_ptr<GpuDriver> driver_;
  std::unique_ptr<GpuPool> source_, destination_;
  std::unique_ptr<ImportedPool> imported_;
  std::unique_ptr<PageCopier> copier_;
  cudaStream_t stream_ = nullptr, reader_ = nullptr;  // Of device 0, and of the destination's.
  uint32_t* flag_ = nullptr;
};

TEST_F(PageCopierTest, PagesOfEverySizeArriveWholeAndNothingElseIsTouched) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  uint32_t value = 0;
  for (int64_t bytes : {16, 48, 1152, 2048, 2064, 4096, 4112, 32768, 73728, 1 << 20}) {
    SCOPED_TRACE(bytes);
    PushAndCompare(ShuffledPages(bytes, 5000, random), random, ++value);
  }
}

TEST_F(PageCopierTest, UnlikeRunsArriveWhole) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (uint32_t round = 1; round <= 10; ++round) {
    // Pages of 64 KiB, and of each a piece of random size and place, or nothing.
    std::vector<CopyRun> runs = ShuffledPages(64 << 10, 300, random);
    for (CopyRun& run : runs) {
      const int64_t skipped = static_cast<int64_t>(random() % 2048) * 16;
      run.source += skipped;
      run.destination += skipped;
      run.bytes = random() % 5 == 0 ? 0 : static_cast<int64_t>(random() % 2048) * 16;
    }
    PushAndCompare(runs, random, round);
  }
}

TEST_F(PageCopierTest, TheCopyEngineTakesRunsOfAnyAlignment) {
  std::mt19937_64 random(std::random_device{}());
  const std::vector<CopyRun> one = {{7, 100'001, 33}};
  std::vector<CopyRun> many = {{0, 0, 0}};  // Nothing to copy.
  for (int64_t i = 0; i < 500; ++i) many.push_back({i * 1'001 + 3, i * 777 + 5, 1 + i});
  uint32_t value = 0;
  for (const std::vector<CopyRun>& runs : {one, many}) {
    const std::vector<uint8_t> bytes = Fill(random);
    ASSERT_THAT(copier_->EnqueueCopyEngine(runs, MakePush(++value), stream_), IsOk());
    Compare(runs, bytes, value);
  }
  EXPECT_THAT(copier_->EnqueueCopyEngine({{0, static_cast<int64_t>(kPoolBytes) - 8, 16}}, MakePush(9), stream_),
              StatusIs(absl::StatusCode::kOutOfRange));
}

TEST_F(PageCopierTest, AnEmptyPushSetsItsFlag) {
  Push({}, 7);
  EXPECT_TRUE(AwaitFlag(7));
}

// What was under way when a flag is seen has all arrived: read at once, by another stream, without any other wait.
TEST_F(PageCopierTest, AllBytesCanBeReadTheMomentTheFlagIsSeen) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes = Fill(random);
  std::vector<uint8_t> got(1 << 20);
  for (uint32_t round = 1; round <= 300; ++round) {
    const int64_t size = 16 * (1 + static_cast<int64_t>(random() % 4096));
    const std::vector<CopyRun> runs = ShuffledPages(size, static_cast<int>(got.size() / size), random);
    Push(runs, round);
    ASSERT_TRUE(AwaitFlag(round));
    // The last run: what the last blocks wrote.
    const CopyRun& last = runs.back();
    Read(last.destination, last.bytes, got.data(), reader_);
    ASSERT_TRUE(std::equal(got.begin(), got.begin() + last.bytes, bytes.begin() + last.source)) << "round " << round;
  }
}

// The layer groups of a hand-over: one list, pushed again and again, each time further on in every page.
TEST_F(PageCopierTest, OneListServesAllLayerGroups) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::vector<uint8_t> bytes = Fill(random);
  constexpr int64_t kPage = 64 << 10, kGroup = kPage / 4;
  std::vector<CopyRun> pages = ShuffledPages(kPage, 100, random), runs = pages;
  for (CopyRun& run : runs) run.bytes = kGroup;
  ASSERT_OK_AND_ASSIGN(PageCopier::List list, copier_->Upload(runs, stream_));
  for (uint32_t group = 0; group < 4; ++group) {
    ASSERT_THAT(copier_->Enqueue(list, MakePush(group + 1, group * kGroup)), IsOk());
  }
  ASSERT_TRUE(AwaitFlag(4));
  std::vector<uint8_t> wanted(kPoolBytes, kPoison), got(kPoolBytes);
  for (const CopyRun& page : pages) std::copy_n(&bytes[page.source], kPage, &wanted[page.destination]);
  Read(0, kPoolBytes, got.data(), reader_);
  EXPECT_TRUE(wanted == got);
}

TEST_F(PageCopierTest, SumsAreThoseOfTheHostAtBothEnds) {
  std::mt19937_64 random(std::random_device{}());
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<PoolMemory> memory, NewCudaMemory(destination_device_));
  constexpr int64_t kPageBytes = 73'728;
  const std::vector<CopyRun> pages = ShuffledPages(kPageBytes, 300, random);
  std::vector<PageIndex> page_numbers;
  for (const CopyRun& page : pages) page_numbers.push_back(static_cast<PageIndex>(page.destination / kPageBytes));
  for (int64_t piece : {int64_t{16}, int64_t{1'152}, int64_t{4'096}, kPageBytes, int64_t{0}}) {
    SCOPED_TRACE(piece);
    const std::vector<uint8_t> bytes = Fill(random);
    std::vector<CopyRun> runs;  // Every page in pieces of that size, or of sizes that are drawn.
    for (const CopyRun& page : pages) {
      for (int64_t done = 0; done < kPageBytes;) {
        const int64_t drawn = piece > 0 ? piece : 16 * (1 + static_cast<int64_t>(random() % 600));
        const int64_t size = std::min(drawn, kPageBytes - done);
        if (piece != 16 || runs.size() < 30'000) runs.push_back({page.source + done, page.destination + done, size});
        done += size;
      }
    }
    const PageRuns cut = CutAtPages(runs, kPageBytes, page_numbers);
    PageSums wanted(pages.size());
    AddHostSums(bytes.data(), PoolSide::kSource, cut.runs, cut.page_of_run, wanted);
    // As they are copied.
    ASSERT_OK_AND_ASSIGN(const PageCopier::List list, copier_->Upload(cut.runs, stream_, cut.page_of_run));
    for (int blocks : {1, 32}) {
      ASSERT_THAT(copier_->Enqueue(list, MakePush(0), blocks), IsOk());
      ASSERT_THAT(Cuda(cudaStreamSynchronize(stream_)), IsOk());
      ASSERT_OK_AND_ASSIGN(const bool ended, copier_->PollEnded(list));
      EXPECT_TRUE(ended);
      PageSums sums(list.sums().begin(), list.sums().end());
      sums.resize(wanted.size());
      EXPECT_EQ(sums, wanted);
    }
    // Without a copy, at the source and from what arrived.
    ASSERT_THAT(copier_->EnqueueSums(list, PoolSide::kSource, {source_->base(), source_->bytes()}), IsOk());
    ASSERT_THAT(Cuda(cudaStreamSynchronize(stream_)), IsOk());
    EXPECT_TRUE(std::equal(list.sums().begin(), list.sums().end(), wanted.begin()));
    auto arrived = [&] {
      PageSums sums(wanted.size());
      EXPECT_THAT(memory->AddSums(destination_->base(), PoolSide::kDestination, cut.runs, cut.page_of_run, sums),
                  IsOk());
      return sums;
    };
    EXPECT_EQ(arrived(), wanted);
    uint8_t* byte = imported_->base() + cut.runs[0].destination + 3;
    ASSERT_THAT(Cuda(cudaMemset(byte, bytes[cut.runs[0].source + 3] ^ 0x10, 1)), IsOk());
    ASSERT_THAT(Cuda(cudaDeviceSynchronize()), IsOk());
    const PageSums damaged = arrived();
    EXPECT_NE(FoldSum(damaged[cut.page_of_run[0]]), FoldSum(wanted[cut.page_of_run[0]]));
    EXPECT_TRUE(std::equal(damaged.begin() + 1, damaged.end(), wanted.begin() + 1));
  }
}

TEST_F(PageCopierTest, SumsNeedPagesAndPlacesInsideThePool) {
  ASSERT_OK_AND_ASSIGN(const PageCopier::List plain, copier_->Upload({{0, 0, 64}}, stream_));
  EXPECT_THAT(copier_->EnqueueSums(plain, PoolSide::kSource, {source_->base(), 64}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  const std::vector<uint32_t> page_of_run = {2};
  ASSERT_OK_AND_ASSIGN(const PageCopier::List list, copier_->Upload({{0, 64, 64}}, stream_, page_of_run));
  EXPECT_THAT(copier_->EnqueueSums(list, PoolSide::kDestination, {source_->base(), 64}),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(copier_->EnqueueSums(list, PoolSide::kSource, {source_->base(), 64}), IsOk());
}

TEST_F(PageCopierTest, ListsBeyondTheLimitAreRefusedUntilOneIsGivenBack) {
  ASSERT_OK_AND_ASSIGN(auto copier, PageCopier::Create({.max_runs = 1, .max_lists = 2}));
  const std::vector<CopyRun> run = {{0, 0, 16}};
  ASSERT_OK_AND_ASSIGN(PageCopier::List first, copier->Upload(run, stream_));
  {
    ASSERT_OK_AND_ASSIGN(PageCopier::List second, copier->Upload(run, stream_));
    EXPECT_THAT(copier->Upload(run, stream_).status(),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("2 copy lists")));
  }
  ASSERT_THAT(Cuda(cudaStreamSynchronize(stream_)), IsOk());
  EXPECT_THAT(copier->Upload(run, stream_).status(), IsOk());
  EXPECT_THAT(copier->Upload({{0, 0, 16}, {16, 16, 16}}, stream_).status(),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("at most 1 fit")));
}

TEST_F(PageCopierTest, PushesThatLeaveAPoolAreRefused) {
  const auto last = static_cast<int64_t>(destination_->bytes());
  ASSERT_OK_AND_ASSIGN(PageCopier::List outside, copier_->Upload({{0, last, 16}}, stream_));
  EXPECT_THAT(copier_->Enqueue(outside, MakePush(1)), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK_AND_ASSIGN(PageCopier::List at_the_end, copier_->Upload({{0, last - 16, 16}}, stream_));
  EXPECT_THAT(copier_->Enqueue(at_the_end, MakePush(1)), IsOk());
  EXPECT_THAT(copier_->Enqueue(at_the_end, MakePush(1, 16)), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(copier_->Enqueue(at_the_end, MakePush(1, 8)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(copier_->Upload({{0, 8, 16}}, stream_).status(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PageCopierTest, APoolThatNoDeviceHasRoomForIsRefusedWithItsSize) {
  EXPECT_THAT(GpuPool::Create(*driver_, 0, uint64_t{1} << 50, PoolReach::kHost).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("GPU 0")));
}

}  // namespace
}  // namespace tandem
