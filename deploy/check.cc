#include "deploy/check.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/process_needs.h"
#include "common/status_macros.h"
#include "common/units.h"
#include "deploy/run_program.h"

namespace tandem {
namespace {

constexpr absl::Duration kCheckTimeout = absl::Minutes(1);

int64_t MachineMemoryBytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kibibytes = 0;
  while (file >> key >> kibibytes >> unit) {
    if (key == "MemTotal:") return kibibytes << 10;
  }
  return INT64_MAX;
}

// What the process says of itself.
absl::StatusOr<ProcessNeeds> AskProcess(const Topology& topology, const ProcessPlan& process,
                                        const std::string& program_folder) {
  const std::string program = absl::StrCat(program_folder, "/", process.program);
  if (std::error_code error; !std::filesystem::exists(program, error))
    return absl::NotFoundError(absl::StrCat(program, " is missing; was it built?"));
  std::vector<std::string> arguments = {program, "--check", absl::StrCat("--topology=", topology.file)};
  arguments.push_back(absl::StrCat("--worker=", process.name));
  ASSIGN_OR_RETURN(ProgramResult result, RunProgram(arguments, kCheckTimeout));
  if (result.exit_code == 0) return ParseNeeds(absl::StripAsciiWhitespace(result.output));
  const absl::string_view errors = absl::StripAsciiWhitespace(result.errors);
  if (result.exit_code == 2 && !errors.empty()) return absl::InvalidArgumentError(errors);
  return absl::InternalError(absl::StrCat(program, " --check ended with code ", result.exit_code, ": ", errors));
}

// As AskProcess for every process; replicas of a pool and their ranks are alike, so one answers for all.
absl::StatusOr<std::vector<ProcessNeeds>> AskProcesses(const Topology& topology,
                                                       const std::vector<ProcessPlan>& processes,
                                                       const std::string& program_folder) {
  std::vector<ProcessNeeds> needs;
  for (const ProcessPlan& process : processes) {
    if (process.replica > 0 || process.tp_rank > 0) {
      needs.push_back(needs.back());
      continue;
    }
    ASSIGN_OR_RETURN(ProcessNeeds answer, AskProcess(topology, process, program_folder));
    needs.push_back(answer);
  }
  return needs;
}

std::string Device(const ProcessPlan& process, const PoolSettings* pool) {
  if (pool == nullptr) return "-";
  return process.gpu.has_value() ? absl::StrCat("gpu ", *process.gpu) : pool->device;
}

// Of "host:port"; a port that is drawn is not in use, and what cannot be looked up is for others to say.
bool IsInUse(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || absl::StartsWith(address, "unix:") || absl::EndsWith(address, ":0")) return false;
  const std::string host = address.substr(0, colon), port = address.substr(colon + 1);
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return false;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));  // What has just ended is no hindrance.
  const bool is_in_use = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) != 0 && errno == EADDRINUSE;
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return is_in_use;
}

}  // namespace

absl::StatusOr<std::string> DescribeTopology(const Topology& topology, const std::string& program_folder) {
  constexpr char kRow[] = "%-16s %-8s %-22s %-22s %-22s %10s %11s %9s %8s\n";
  const std::vector<ProcessPlan> processes = topology.Processes();
  ASSIGN_OR_RETURN(std::vector<ProcessNeeds> needs, AskProcesses(topology, processes, program_folder));
  std::string table = absl::StrFormat(kRow, "process", "device", "service", "HTTP or link", "metrics", "weights",
                                      "KV cache", "KV pages", "context");
  int64_t total = 0;
  for (size_t i = 0; i < processes.size(); ++i) {
    const ProcessPlan& process = processes[i];
    const PoolSettings* pool = process.pool < 0 ? nullptr : &topology.pools[process.pool];
    const std::string& second_address = pool == nullptr ? process.http_address : process.link_address;
    const auto or_none = [](const std::string& address) { return address.empty() ? "-" : address; };
    absl::StrAppendFormat(&table, kRow, process.name, Device(process, pool), or_none(process.service_address),
                          or_none(second_address), or_none(process.metrics_address),
                          pool ? FormatBytes(needs[i].weight_bytes) : "-",
                          !pool                    ? "-"
                          : needs[i].kv_bytes == 0 ? "what's free"
                                                   : FormatBytes(needs[i].kv_bytes),
                          pool && needs[i].kv_pages > 0 ? absl::StrCat(needs[i].kv_pages) : "-",
                          pool ? absl::StrCat(needs[i].max_context_tokens) : "-");
    if (!process.gpu.has_value()) total += needs[i].weight_bytes + needs[i].kv_bytes;
  }
  absl::StrAppend(&table, "memory in all: ", FormatBytes(total), "\n");
  if (const int64_t machine = MachineMemoryBytes(); total > machine) {
    return absl::ResourceExhaustedError(absl::StrCat(topology.pools[0].where, ": pools: the processes need ",
                                                     FormatBytes(total), ", this host has ", FormatBytes(machine),
                                                     "; lower kv_memory or replicas, or take a smaller model"));
  }
  return table;
}

absl::Status CheckPortsAreFree(const Topology& topology) {
  for (const ProcessPlan& process : topology.Processes()) {
    for (const std::string& address :
         {process.service_address, process.http_address, process.link_address, process.metrics_address}) {
      if (!IsInUse(address)) continue;
      return absl::AlreadyExistsError(
          absl::StrCat(process.name, " is to listen on ", address,
                       ", which is in use; stop what listens there or choose another port"));
    }
  }
  return absl::OkStatus();
}

}  // namespace tandem
