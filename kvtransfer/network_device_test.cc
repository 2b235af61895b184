#include "kvtransfer/network_device.h"

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdio>
#include <cstdlib>

#include "gtest/gtest.h"

namespace tandem {
namespace {

TEST(NetworkDeviceTest, IsTheOneThatHasTheAddress) {
  EXPECT_EQ(NetworkDeviceOf("127.0.0.1"), "lo");
  EXPECT_EQ(NetworkDeviceOf("localhost"), "lo");
  EXPECT_EQ(NetworkDeviceOf("0.0.0.0"), "");
  EXPECT_EQ(NetworkDeviceOf("203.0.113.7"), "");  // Kept for documentation: nobody's.
  EXPECT_EQ(NetworkDeviceOf("no such host"), "");
  ifaddrs* all = nullptr;
  ASSERT_EQ(getifaddrs(&all), 0);
  for (const ifaddrs* device = all; device != nullptr; device = device->ifa_next) {
    if (device->ifa_addr == nullptr || device->ifa_addr->sa_family != AF_INET) continue;
    char host[NI_MAXHOST];
    ASSERT_EQ(getnameinfo(device->ifa_addr, sizeof(sockaddr_in), host, sizeof(host), nullptr, 0, NI_NUMERICHOST), 0);
    EXPECT_EQ(NetworkDeviceOf(host), device->ifa_name) << host;
  }
  freeifaddrs(all);
}

TEST(NetworkDeviceDeathTest, UcxIsKeptThereUnlessTheEnvironmentChooses) {
  const auto device_after = [](const char* variable, const char* value) {
    for (const char* name : {"UCX_TLS", "UCX_NET_DEVICES"}) unsetenv(name);
    if (variable != nullptr) setenv(variable, value, /*overwrite=*/1);
    KeepUcxAt("127.0.0.1");
    const char* device = std::getenv("UCX_NET_DEVICES");
    fprintf(stderr, "device: %s", device == nullptr ? "none" : device);
    std::exit(0);
  };
  EXPECT_EXIT(device_after(nullptr, nullptr), testing::ExitedWithCode(0), "device: lo$");
  EXPECT_EXIT(device_after("UCX_TLS", "rc"), testing::ExitedWithCode(0), "device: none$");
  EXPECT_EXIT(device_after("UCX_NET_DEVICES", "mlx5_0:1"), testing::ExitedWithCode(0), "device: mlx5_0:1$");
}

}  // namespace
}  // namespace tandem
