#pragma once

#include <string>

namespace tandem {

// Which GPUs a test has: device 0, and perhaps another one that reaches it.
struct GpuPresence {
  int devices = 0;
  int peer_device = 0;     // 1, or 0 where no other is reached.
  bool is_broken = false;  // There is a GPU, and its driver does not work: no reason to skip.
  std::string cause;       // Why there is none to use.
};
GpuPresence FindGpus();

}  // namespace tandem

// At the beginning of a test or its SetUp: declares `presence`, fails where a GPU does not work, skips where there is
// none.
#define TANDEM_NEEDS_GPU(presence)                             \
  const ::tandem::GpuPresence presence = ::tandem::FindGpus(); \
  ASSERT_FALSE(presence.is_broken) << presence.cause;          \
  if (presence.devices == 0) GTEST_SKIP() << presence.cause
