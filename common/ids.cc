#include "common/ids.h"

#include <random>

namespace tandem {

uint64_t DrawRandomId() {
  std::random_device device;
  while (true) {
    uint64_t id = (static_cast<uint64_t>(device()) << 32) | device();
    if (id != 0) return id;
  }
}

}  // namespace tandem
