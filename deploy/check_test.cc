#include "deploy/check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Programs that are shell scripts in place of ours: what they answer is what a topology is judged by.
class CheckTest : public testing::Test {
 protected:
  CheckTest() {
    std::string pattern = std::filesystem::temp_directory_path() / "tandem-check-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    Script("tandem-router", "echo weight_bytes=0 kv_bytes=0 kv_pages=0 max_context_tokens=0");
    Script("tandem-decode",
           "echo a warning >&2; echo weight_bytes=1048576 kv_bytes=2097152 kv_pages=77 max_context_tokens=9; echo "
           "another >&2");
  }
  ~CheckTest() override { std::filesystem::remove_all(folder_); }

  void Script(const std::string& name, const std::string& body) {
    std::ofstream(folder_ / name) << "#!/bin/sh\n" << body << "\n";
    chmod((folder_ / name).c_str(), 0755);
  }
  absl::StatusOr<std::string> Describe() {
    absl::StatusOr<Topology> topology = Topology::Parse(
        "model: {path: /m, served_name: m}\nrouter: {listen: 'unix:/r', metrics_listen: ''}\n"
        "pools: [{name: decode, role: decode, replicas: 3}]\n",
        "t.yaml");
    EXPECT_THAT(topology, IsOk());
    return DescribeTopology(*topology, folder_);
  }

  std::filesystem::path folder_;
};

TEST_F(CheckTest, TheTableShowsWhatEachProcessSaysOfItself) {
  ASSERT_OK_AND_ASSIGN(std::string table, Describe());
  EXPECT_THAT(table, HasSubstr("decode-2"));
  EXPECT_THAT(table, AllOf(HasSubstr("1 MiB"), HasSubstr("2 MiB"), HasSubstr("77")));
  EXPECT_THAT(table, HasSubstr("memory in all: 9 MiB"));
}

TEST_F(CheckTest, WhatAProgramRefusesIsRefused) {
  Script("tandem-decode", "echo 't.yaml:1: model.path: /m is no model' >&2; exit 2");
  EXPECT_THAT(Describe().status(),
              StatusIs(absl::StatusCode::kInvalidArgument, "t.yaml:1: model.path: /m is no model"));
}

TEST_F(CheckTest, AProgramThatCrashesOrSaysSomethingElseIsAnError) {
  Script("tandem-decode", "echo out of luck >&2; kill -9 $$");
  EXPECT_THAT(Describe().status(),
              StatusIs(absl::StatusCode::kInternal, AllOf(HasSubstr("code 137"), HasSubstr("out of luck"))));
  Script("tandem-decode", "echo weight_bytes=many");
  EXPECT_THAT(Describe().status(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weight_bytes=many")));
}

TEST_F(CheckTest, MoreMemoryThanTheHostHasIsRefusedWithBothFigures) {
  Script("tandem-decode", "echo weight_bytes=1 kv_bytes=1125899906842624 kv_pages=1 max_context_tokens=1");
  EXPECT_THAT(Describe().status(), StatusIs(absl::StatusCode::kResourceExhausted,
                                            AllOf(HasSubstr("t.yaml:3: pools"), HasSubstr("this host has"))));
}

TEST(CheckPortsTest, APortInUseIsNamedWithItsProcess) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string taken = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  absl::StatusOr<Topology> topology =
      Topology::Parse(absl::StrCat("model: {path: /m, served_name: m}\nrouter: {listen: 'unix:/r', http_listen: '",
                                   taken, "', metrics_listen: ''}\npools: [{name: decode, role: decode}]\n"),
                      "t.yaml");
  ASSERT_THAT(topology.status(), IsOk());
  EXPECT_THAT(
      CheckPortsAreFree(*topology),
      StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("router is to listen on " + taken + ", which is in use")));
  close(fd);
  EXPECT_THAT(CheckPortsAreFree(*topology), IsOk());
}

TEST_F(CheckTest, AMissingProgramIsNamed) {
  std::filesystem::remove(folder_ / "tandem-decode");
  EXPECT_THAT(Describe().status(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tandem-decode is missing")));
}

}  // namespace
}  // namespace tandem
