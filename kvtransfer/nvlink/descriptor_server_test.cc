#include "kvtransfer/nvlink/descriptor_server.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

int MemoryWithText(const char* text, size_t length) {
  int fd = memfd_create("test", MFD_CLOEXEC);
  EXPECT_EQ(pwrite(fd, text, length, 0), static_cast<ssize_t>(length));
  return fd;
}

TEST(DescriptorServerTest, AnotherProcessGetsTheSameMemory) {
  const int fd = MemoryWithText("tandem", 6);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<DescriptorServer> server, DescriptorServer::Start(fd));
  close(fd);  // The server has its own.
  const pid_t child = fork();
  if (child == 0) {
    absl::StatusOr<int> fetched = FetchDescriptor(server->address(), kPatience);
    char text[6] = {};
    const bool same = fetched.ok() && pread(*fetched, text, 6, 0) == 6 && memcmp(text, "tandem", 6) == 0 &&
                      pwrite(*fetched, "T", 1, 0) == 1;
    _exit(same ? 0 : 1);
  }
  int result = 0;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_EQ(result, 0);
  ASSERT_OK_AND_ASSIGN(int fetched, FetchDescriptor(server->address(), kPatience));
  char first = 0;
  EXPECT_EQ(pread(fetched, &first, 1, 0), 1);
  EXPECT_EQ(first, 'T');  // Of the child.
  close(fetched);
}

TEST(DescriptorServerTest, ServesAnyNumberOfClients) {
  const int fd = MemoryWithText("x", 1);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<DescriptorServer> server, DescriptorServer::Start(fd));
  for (int i = 0; i < 3'000; ++i) {  // More than a process may have open, should one leak.
    ASSERT_OK_AND_ASSIGN(int fetched, FetchDescriptor(server->address(), kPatience));
    close(fetched);
  }
  close(fd);
}

TEST(DescriptorServerTest, AnotherUserGetsNothing) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can be another user";
  const int fd = MemoryWithText("x", 1);
  ASSERT_OK_AND_ASSIGN(std::unique_ptr<DescriptorServer> server, DescriptorServer::Start(fd));
  close(fd);
  const pid_t child = fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    const bool is_other = setuid(kNobody) == 0;
    _exit(is_other && absl::IsUnavailable(FetchDescriptor(server->address(), kPatience).status()) ? 0 : 1);
  }
  int result = 0;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_EQ(result, 0);
}

TEST(DescriptorServerTest, NobodyThereIsUnavailableAtOnce) {
  std::string address;
  {
    const int fd = MemoryWithText("x", 1);
    ASSERT_OK_AND_ASSIGN(std::unique_ptr<DescriptorServer> server, DescriptorServer::Start(fd));
    close(fd);
    address = server->address();
  }
  const absl::Time begin = absl::Now();
  EXPECT_THAT(FetchDescriptor(address, absl::Seconds(60)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(address)));
  EXPECT_LT(absl::Now() - begin, kPatience);
}

}  // namespace
}  // namespace tandem
