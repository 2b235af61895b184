#include "deploy/check.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "common/units.h"

namespace tandem {
namespace {

// Weights of a GGUF file, or of all safetensors files of a folder.
absl::StatusOr<int64_t> ModelBytes(const ModelSettings& model) {
  namespace fs = std::filesystem;
  std::error_code error;
  auto size_of = [&](const fs::path& file) -> absl::StatusOr<int64_t> {
    const uintmax_t size = fs::file_size(file, error);
    if (!error) return static_cast<int64_t>(size);
    return absl::NotFoundError(
        absl::StrCat(model.where, ": model.path: ", file.string(), " cannot be read: ", error.message()));
  };
  if (fs::is_regular_file(model.path, error)) return size_of(model.path);
  if (!fs::is_directory(model.path, error)) {
    return absl::NotFoundError(absl::StrCat(model.where, ": model.path: ", model.path,
                                            " does not exist; relative paths begin at the topology file"));
  }
  int64_t bytes = 0;
  for (fs::directory_iterator entry(model.path, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() != ".safetensors") continue;
    ASSIGN_OR_RETURN(int64_t size, size_of(entry->path()));
    bytes += size;
  }
  if (bytes == 0) {
    return absl::NotFoundError(absl::StrCat(model.where, ": model.path: ", model.path, " holds no .safetensors file"));
  }
  return bytes;
}

// The most that the weights take once they are packed for the CPU: 5- and 6-bit ones are kept in 8 bits, and in full
// precision 4-bit ones in 32. Those of a Hugging Face folder stay as they are.
int64_t PackedBytes(const ModelSettings& model, int64_t file_bytes) {
  std::error_code error;
  if (std::filesystem::is_directory(model.path, error)) return file_bytes;
  return model.precision == Precision::kFull ? file_bytes * 7 : file_bytes * 15 / 8;
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
  ASSIGN_OR_RETURN(int64_t file_bytes, ModelBytes(topology.model));
  const int64_t weight_bytes = PackedBytes(topology.model, file_bytes);
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
