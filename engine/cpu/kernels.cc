#include "engine/cpu/kernels.h"

#include <cstdlib>

#include "absl/strings/string_view.h"

namespace tandem {

int64_t AttentionScratchFloats(const AttentionTask& task) {
  int64_t padded_dim = (task.kv.layout.head_dim + 15) / 16 * 16;
  int64_t context = (task.first_position + task.num_rows + 15) / 16 * 16;
  return 16 * padded_dim + padded_dim + int64_t{task.num_rows} * task.group_heads * context;
}

std::vector<const Kernels*> AvailableKernels() {
  std::vector<const Kernels*> available;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
    available.push_back(&avx512::GetKernels());
  }
#endif
  available.push_back(&portable::GetKernels());
  return available;
}

const Kernels& ChooseKernels() {
  const char* forced = std::getenv("TANDEM_CPU_KERNELS");
  for (const Kernels* kernels : AvailableKernels()) {
    if (forced == nullptr || absl::string_view(forced) == kernels->name) return *kernels;
  }
  return portable::GetKernels();
}

}  // namespace tandem
