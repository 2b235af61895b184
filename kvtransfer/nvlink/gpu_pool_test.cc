#include "kvtransfer/nvlink/gpu_pool.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// GPU memory as counts: what was made and not given back.
class FakeGpuDriver final : public GpuDriver {
 public:
  absl::StatusOr<uint64_t> Granularity(int, PoolReach) override { return 4096; }
  absl::StatusOr<Allocation> Create(int, uint64_t bytes, PoolReach reach) override {
    if (reach == PoolReach::kFabric && !fabric_allowed)
      return absl::PermissionDeniedError("cuMemCreate: not permitted");
    if (bytes > free_bytes) return absl::ResourceExhaustedError("cuMemCreate: out of memory");
    created_bytes = bytes;
    return AddAllocation();
  }
  absl::StatusOr<ShareableHandle> Export(Allocation allocation, PoolReach reach) override {
    return ShareableHandle{.reach = reach, .fd = static_cast<int>(allocation)};
  }
  absl::StatusOr<Allocation> Import(const ShareableHandle& handle) override {
    if (handle.fd < 0) return absl::InternalError("cuMemImportFromShareableHandle: invalid");
    ++imports;
    return AddAllocation();
  }
  absl::StatusOr<uint8_t*> Map(Allocation, uint64_t bytes, int device) override {
    if (map_fails) return absl::ResourceExhaustedError("cuMemMap: out of memory");
    mapped_on = device;
    uint8_t* base = memory.data() + 4096 * next_base++;
    mappings[base] = bytes;
    return base;
  }
  void Unmap(uint8_t* base, uint64_t bytes) override {
    EXPECT_EQ(mappings.at(base), bytes);
    mappings.erase(base);
  }
  void Release(Allocation allocation) override {
    EXPECT_EQ(live.erase(allocation), 1);
    EXPECT_LE(mappings.size(), live.size());  // Nothing stays mapped of what is released.
  }

  uint64_t free_bytes = 1 << 20;
  bool fabric_allowed = false, map_fails = false;
  int imports = 0, mapped_on = -1, next_base = 0;
  Allocation next_id = 100;
  std::set<Allocation> live;
  uint64_t created_bytes = 0;
  std::vector<uint8_t> memory = std::vector<uint8_t>(1 << 16);
  std::map<uint8_t*, uint64_t> mappings;

 private:
  Allocation AddAllocation() {
    live.insert(++next_id);
    return next_id;
  }
};

TEST(GpuPoolTest, RoundsUpMapsForItsDeviceAndGivesAllBack) {
  FakeGpuDriver driver;
  {
    ASSERT_OK_AND_ASSIGN(auto pool, GpuPool::Create(driver, 1, 5000, PoolReach::kHost));
    EXPECT_EQ(pool->bytes(), 8192);
    EXPECT_EQ(driver.created_bytes, 8192);
    EXPECT_EQ(driver.mapped_on, 1);
    EXPECT_THAT(pool->Export(), IsOk());
  }
  EXPECT_EQ(driver.live.size(), 0);
  EXPECT_TRUE(driver.mappings.empty());
}

TEST(GpuPoolTest, FullMemoryIsSaidWithDeviceAndSizeAndLeavesNothing) {
  FakeGpuDriver driver;
  EXPECT_THAT(GpuPool::Create(driver, 3, 2 << 20, PoolReach::kHost).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, AllOf(HasSubstr("2 MiB"), HasSubstr("GPU 3"))));
  driver.map_fails = true;
  EXPECT_THAT(GpuPool::Create(driver, 3, 4096, PoolReach::kHost).status(),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(driver.live.size(), 0);
}

TEST(GpuPoolTest, FabricWithoutPermissionNamesTheCure) {
  FakeGpuDriver driver;
  EXPECT_THAT(GpuPool::Create(driver, 0, 4096, PoolReach::kFabric).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr("IMEX channel"), HasSubstr("GPU 0"))));
  driver.fabric_allowed = true;
  EXPECT_THAT(GpuPool::Create(driver, 0, 4096, PoolReach::kFabric).status(), IsOk());
}

class ImportCacheTest : public testing::Test {
 protected:
  absl::StatusOr<std::shared_ptr<const ImportedPool>> Acquire(uint64_t peer, int region, int fd = 7) {
    return cache_.Acquire(Incarnation(peer), region, {.fd = fd}, 4096);
  }
  FakeGpuDriver driver_;
  ImportCache cache_{driver_, 0};
};

TEST_F(ImportCacheTest, APoolIsMappedOnceForAllItsLinks) {
  ASSERT_OK_AND_ASSIGN(auto first, Acquire(1, 0));
  ASSERT_OK_AND_ASSIGN(auto again, Acquire(1, 0));
  EXPECT_EQ(first->base(), again->base());
  ASSERT_OK_AND_ASSIGN(auto other_region, Acquire(1, 1));
  ASSERT_OK_AND_ASSIGN(auto next_life, Acquire(2, 0));
  EXPECT_EQ(driver_.imports, 3);
}

TEST_F(ImportCacheTest, APoolIsUnmappedWithItsLastLink) {
  ASSERT_OK_AND_ASSIGN(auto link, Acquire(1, 0));
  ASSERT_OK_AND_ASSIGN(auto link_with_a_copy_in_flight, Acquire(1, 0));
  ASSERT_OK_AND_ASSIGN(auto other_peer, Acquire(2, 0));
  link.reset();
  EXPECT_EQ(driver_.live.size(), 2);
  link_with_a_copy_in_flight.reset();
  EXPECT_EQ(driver_.live.size(), 1);
  EXPECT_EQ(driver_.mappings.size(), 1);
  ASSERT_OK_AND_ASSIGN(link, Acquire(1, 0));  // And mapped anew for the next one.
  EXPECT_EQ(driver_.imports, 3);
}

TEST_F(ImportCacheTest, APoolThatChangesItsSizeIsRefused) {
  ASSERT_OK_AND_ASSIGN(auto pool, Acquire(1, 0));
  EXPECT_THAT(cache_.Acquire(Incarnation(1), 0, {.fd = 7}, 8192).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("peer 1"), HasSubstr("4096"))));
}

TEST_F(ImportCacheTest, AFailedImportIsNotKept) {
  EXPECT_THAT(Acquire(1, 0, /*fd=*/-1).status(), StatusIs(absl::StatusCode::kInternal));
  driver_.map_fails = true;
  EXPECT_THAT(Acquire(1, 0).status(), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(driver_.live.size(), 0);
  driver_.map_fails = false;
  EXPECT_THAT(Acquire(1, 0).status(), IsOk());
}

}  // namespace
}  // namespace tandem
