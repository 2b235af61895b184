#include "deploy/check.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/units.h"

namespace tandem {
namespace {

// Weights of a GGUF file, or of all safetensors files of a folder.
absl::StatusOr<int64_t> ModelBytes(const ModelSettings& model) {
  std::error_code error;
  if (std::filesystem::is_regular_file(model.path, error)) return std::filesystem::file_size(model.path);
  if (!std::filesystem::is_directory(model.path, error)) {
    return absl::NotFoundError(
        absl::StrCat("model.path: ", model.path, " does not exist; relative paths begin at the topology file"));
  }
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(model.path, error)) {
    if (entry.path().extension() == ".safetensors") bytes += static_cast<int64_t>(entry.file_size());
  }
  if (bytes == 0) return absl::NotFoundError(absl::StrCat("model.path: ", model.path, " holds no .safetensors file"));
  return bytes;
}

int64_t MachineMemoryBytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kibibytes = 0;
  while (file >> key >> kibibytes >> unit) {
    if (key == "MemTotal:") return kibibytes << 10;
  }
  return INT64_MAX;
}

}  // namespace

absl::StatusOr<std::string> DescribeTopology(const Topology& topology) {
  absl::StatusOr<int64_t> weights = ModelBytes(topology.model);
  if (!weights.ok()) return absl::NotFoundError(absl::StrCat(topology.file, ": ", weights.status().message()));
  // In full precision a 4-bit weight takes 32 bits; 16-bit ones stay. Seven times covers both.
  const int64_t weight_bytes = topology.model.precision == Precision::kFull ? *weights * 7 : *weights * 5 / 4;
  std::string table = absl::StrFormat("%-12s %-8s %-22s %-22s %-22s %10s %10s\n", "process", "device", "service",
                                      "link", "metrics", "weights", "KV cache");
  int64_t total = 0;
  for (const ProcessPlan& process : topology.Processes()) {
    const PoolSettings* pool = process.pool < 0 ? nullptr : &topology.pools[process.pool];
    absl::StrAppendFormat(&table, "%-12s %-8s %-22s %-22s %-22s %10s %10s\n", process.name, pool ? pool->device : "-",
                          process.service_address, process.link_address.empty() ? "-" : process.link_address,
                          process.metrics_address, pool ? FormatBytes(weight_bytes) : "-",
                          pool ? FormatBytes(pool->kv_memory_bytes) : "-");
    if (pool != nullptr) total += weight_bytes + pool->kv_memory_bytes;
  }
  absl::StrAppend(&table, "memory in all: ", FormatBytes(total), "\n");
  if (const int64_t machine = MachineMemoryBytes(); total > machine) {
    return absl::ResourceExhaustedError(absl::StrCat(topology.pools[0].where, ": pools: the processes need ",
                                                     FormatBytes(total), ", this host has ", FormatBytes(machine),
                                                     "; lower kv_memory or replicas, or take a smaller model"));
  }
  return table;
}

}  // namespace tandem
