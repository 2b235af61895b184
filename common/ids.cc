#include "common/ids.h"

#include <random>

namespace tandem {
namespace {

uint64_t SystemRandom() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace

uint64_t DrawRandomId() {
  // SplitMix64 from a start of the kernel's: a system call for each id would be a tenth of a
  // request's cost. Its period is 2^64, so a thread never repeats an id.
  thread_local uint64_t state = SystemRandom();
  while (true) {
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    if (z != 0) return z;
  }
}

}  // namespace tandem
