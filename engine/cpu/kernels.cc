#include "engine/cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace tandem {

int64_t AttentionScratchFloats(const AttentionTask& task) {
  int64_t padded_dim = (task.kv.layout.head_dim + 15) / 16 * 16;
  int64_t context = (task.first_position + task.num_rows + 15) / 16 * 16;
  return 16 * padded_dim + padded_dim + int64_t{task.num_rows} * task.group_heads * context;
}

namespace {

#if defined(__x86_64__)
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// Whether the processor has int8 tiles and the kernel lets this process use them. Linux saves their 8 KiB a thread only
// for processes that asked.
bool HasAmx() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kTileBit = 1u << 24, kInt8Bit = 1u << 25;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kTileBit) == 0 || (edx & kInt8Bit) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

constexpr char kChoice[] = "TANDEM_CPU_KERNELS";

std::vector<const Kernels*> FindKernels() {
  std::vector<const Kernels*> available;
#if defined(__x86_64__)
  if (HasAvx512()) {
    // In this order by measurement (docs/performance.md): tiles gain nothing on blocks of 32 weights with a scale each.
    available.push_back(&avx512::GetKernels());
    if (HasAmx()) available.push_back(&amx::GetKernels());
  }
#endif
  available.push_back(&portable::GetKernels());
  return available;
}

}  // namespace

const std::vector<const Kernels*>& AvailableKernels() {
  static const auto& available = *new std::vector<const Kernels*>(FindKernels());
  return available;
}

const Kernels& ChooseKernels() {
  const char* wanted = std::getenv(kChoice);
  for (const Kernels* kernels : AvailableKernels()) {
    if (wanted == nullptr || absl::string_view(wanted) == kernels->name) return *kernels;
  }
  return portable::GetKernels();
}

absl::Status CheckKernelChoice() {
  const char* wanted = std::getenv(kChoice);
  std::vector<absl::string_view> names;
  for (const Kernels* kernels : AvailableKernels()) {
    if (wanted == nullptr || absl::string_view(wanted) == kernels->name) return absl::OkStatus();
    names.push_back(kernels->name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("environment: ", kChoice, "=", wanted, ": this processor runs ", absl::StrJoin(names, ", ")));
}

}  // namespace tandem
