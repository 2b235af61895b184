#include "tests/support/process_cluster.h"

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "tests/support/golden_file.h"
#include "tests/support/test_certificates.h"

namespace tandem {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);
// By then nothing of a fault may be left, says the failure table.
constexpr absl::Duration kAftermath = absl::Seconds(5);

// A port that nobody uses now.
int FreePort() {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(address);
  int port = 0;
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    port = ntohs(address.sin_port);
  }
  close(fd);
  return port;
}

std::string PortsText(const ProcessCluster::Options& options) {
  if (!options.fixed_ports) return "";
  return absl::StrCat(", ports: {service: ", FreePort(), ", link: ", FreePort(), "}");
}

std::string TopologyText(const ProcessCluster::Options& options, const std::string& router) {
  std::string pools;
  const std::string device = options.on_gpu ? ", device: cuda, first_gpu: 0" : "";
  const std::string model = options.on_gpu ? SourcePath("tests/golden/tiny/llama3_f32") : SmolLm2Path();
  const std::string precision = options.on_gpu ? "bf16" : options.precision;
  if (options.prefill_replicas > 0) {
    absl::StrAppend(&pools, "  - {name: prefill, role: prefill, replicas: ", options.prefill_replicas,
                    ", kv_memory: ", options.prefill_kv_memory, ", limits: ", options.limits, device,
                    PortsText(options), "}\n");
  }
  absl::StrAppend(
      &pools, "  - {name: decode, role: decode, replicas: ", options.decode_replicas,
      ", parallelism: {tp: ", options.decode_ranks, "}, kv_memory: ", options.decode_kv_memory,
      ", limits: ", options.limits, device, PortsText(options),
      options.decode_service_port > 0 ? absl::StrCat(", ports: {service: ", options.decode_service_port, "}") : "",
      "}\n");
  return absl::StrCat(
      "model: {path: ", model, ", served_name: m, precision: ", precision, "}\n",
      "router:\n  replicas: ", options.routers, "\n  listen: \"", router,
      "\"\n  http_listen: 127.0.0.1:0\n  conditional_prefill_tokens: ", options.conditional_prefill_tokens,
      "\n  ties: by_name\n  "
      "metrics_listen: \"\"\n",
      options.router_extra, "pools:\n", pools, "links: {transports: [", options.transports,
      "], checksums: ", options.checksums ? "true" : "false", "}\n",
      options.tls ? absl::StrCat("tls: {certificate: own.pem, key: own.key, authorities: authority.pem",
                                 options.mutual_tls ? ", client_authorities: clients.pem" : "", "}\n")
                  : "",
      options.topology_extra);
}

}  // namespace

ProcessCluster::ProcessCluster(const Options& options) : options_(options) {
  std::string pattern = std::filesystem::temp_directory_path() / "tandem-test-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) abort();
  folder_ = pattern;
  file_ = folder_ + "/topology.yaml";
  router_ = options.tls ? absl::StrCat("127.0.0.1:", FreePort()) : absl::StrCat("unix:", folder_, "/router.sock");
  if (options.tls) {
    const TestAuthority authority("cluster");
    const TestAuthority::Signed own = authority.Sign({"tandem", "127.0.0.1"});
    std::ofstream(folder_ + "/own.pem") << own.certificate;
    std::ofstream(folder_ + "/own.key") << own.key;
    std::ofstream(folder_ + "/authority.pem") << authority.certificate();
    TlsIdentity client{.authorities = authority.certificate()};
    if (options.mutual_tls) {
      const TestAuthority clients("clients");
      std::ofstream(folder_ + "/clients.pem") << clients.certificate();
      const TestAuthority::Signed of_client = clients.Sign({"client"});
      client.certificate = of_client.certificate;
      client.key = of_client.key;
    }
    client_tls_ = std::make_shared<const TlsIdentity>(client);
  }
  std::ofstream(file_) << TopologyText(options_, router_);
  absl::StatusOr<Topology> topology = Topology::Load(file_);
  if (!topology.ok()) {
    fprintf(stderr, "%s\n", topology.status().ToString().c_str());
    abort();
  }
  Launcher::Options launch;
  launch.program_folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  launch.on_line = [this](const std::string& process, const std::string& line) {
    absl::MutexLock lock(&output_mu_);
    absl::StrAppend(&output_, process, " | ", line, "\n");
  };
  launch.environment = [this](const std::string& process) -> std::vector<std::string> {
    // Called by the launcher, under mu_. Only a process's first life is faulty.
    std::vector<std::string> environment;
    if (launcher_ != nullptr && launcher_->restarts(process) > 0) return environment;
    const auto add = [&](const char* name, const std::function<std::string(const std::string&)>& faults) {
      const std::string text = faults ? faults(process) : "";
      if (!text.empty()) environment.push_back(absl::StrCat(name, "=", text));
    };
    add("TANDEM_TRANSFER_FAULTS", options_.faults);
    add("TANDEM_GPU_FAULT", options_.gpu_faults);
    return environment;
  };
  launch.first_backoff = absl::Milliseconds(50);
  client_ = std::make_unique<RouterClient>(router_, ClientIdentity{options_.api_key, client_tls_});
  absl::MutexLock lock(&mu_);
  launcher_ = std::make_unique<Launcher>(*topology, std::move(launch));
  if (absl::Status status = launcher_->StartAll(); !status.ok()) {
    fprintf(stderr, "%s\n", status.ToString().c_str());
    abort();
  }
  thread_ = std::thread([this] {
    while (!stopping_) {
      absl::MutexLock turn(&mu_);
      // Whoever else wants the launcher gets it first: this thread would take it again at once, for ever.
      mu_.Await(absl::Condition(
          +[](std::atomic<int>* wanted) { return *wanted == 0; }, &wanted_));
      launcher_->RunFor(absl::Milliseconds(10));
    }
  });
}

ProcessCluster::~ProcessCluster() {
  stopping_ = true;
  thread_.join();
  {
    absl::MutexLock lock(&mu_);
    launcher_->StopAll(absl::ZeroDuration());
  }
  std::filesystem::remove_all(folder_);
}

bool ProcessCluster::AwaitStatus(absl::Duration patience, const std::function<bool(const ClusterSummary&)>& condition) {
  const absl::Time deadline = Clock::Real().Now() + patience;
  while (Clock::Real().Now() < deadline) {
    absl::StatusOr<ClusterSummary> status = client_->Status();
    if (status.ok() && condition(*status)) return true;
    // Processes change outside of this one: there is nothing to wait on but time.
    usleep(20'000);
  }
  return false;
}

bool ProcessCluster::AwaitReady() {
  return AwaitWorkers(options_.prefill_replicas + options_.decode_replicas,
                      options_.prefill_replicas * options_.decode_replicas);
}

bool ProcessCluster::AwaitActive(int requests) {
  return AwaitStatus(kPatience, [&](const ClusterSummary& status) {
    return requests == 0 ? status.active_requests == 0 : status.active_requests >= requests;
  });
}

bool ProcessCluster::AwaitWorkers(int workers, int links) {
  return AwaitStatus(kPatience, [&](const ClusterSummary& status) {
    int up = 0;
    for (const LinkSummary& link : status.links) up += link.up;
    return status.ready && status.workers.size() == workers && up == links;
  });
}

bool ProcessCluster::AwaitAllPagesFree(int have_left) {
  std::string problem;
  bool free = AwaitStatus(kAftermath, [&](const ClusterSummary& status) {
    problem = status.active_requests > 0 ? absl::StrCat(status.active_requests, " requests are active\n") : "";
    if (status.workers.size() != options_.prefill_replicas + options_.decode_replicas - have_left) {
      absl::StrAppend(&problem, "only ", status.workers.size(), " workers are registered\n");
    }
    for (const WorkerSummary& worker : status.workers) {
      int sum = 0, bound = 0;
      for (const auto& [state, count] : worker.pages) {
        sum += count;
        if (state != "free" && state != "cached") bound += count;
      }
      if (sum != worker.total_pages || bound > 0) {
        absl::StrAppend(&problem, worker.worker_id, ": ", sum, " of ", worker.total_pages, " pages are counted, ",
                        bound, " are neither free nor cached\n");
      }
    }
    return problem.empty();
  });
  if (!free) fprintf(stderr, "%s", problem.c_str());
  return free;
}

bool ProcessCluster::AwaitPagesInState(const std::string& state) {
  return AwaitStatus(kPatience, [&](const ClusterSummary& status) {
    for (const WorkerSummary& worker : status.workers) {
      for (const auto& [name, count] : worker.pages) {
        if (name == state && count > 0) return true;
      }
    }
    return false;
  });
}

void ProcessCluster::Signal(const std::string& process, int signal) {
  ++wanted_;
  absl::MutexLock lock(&mu_);
  --wanted_;
  if (pid_t pid = launcher_->pid(process); pid > 0) kill(pid, signal);
}

std::vector<std::string> ProcessCluster::ListeningAt(const std::string& process) {
  pid_t pid = 0;
  {
    ++wanted_;
    absl::MutexLock lock(&mu_);
    --wanted_;
    pid = launcher_->pid(process);
  }
  std::set<std::string> sockets;  // Of the process, by inode.
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/fd"))) {
    std::error_code error;
    absl::string_view target;
    const std::string link = std::filesystem::read_symlink(entry.path(), error);
    target = link;
    if (!error && absl::ConsumePrefix(&target, "socket:[")) sockets.insert(std::string(absl::StripSuffix(target, "]")));
  }
  std::vector<std::string> addresses;
  for (const char* name : {"tcp", "tcp6"}) {
    std::ifstream file(absl::StrCat("/proc/", pid, "/net/", name));
    std::string line;
    while (std::getline(file, line)) {
      const std::vector<std::string> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
      constexpr char kListens[] = "0A";
      if (fields.size() > 9 && fields[3] == kListens && sockets.contains(fields[9])) addresses.push_back(fields[1]);
    }
  }
  return addresses;
}

int64_t ProcessCluster::ResidentBytes(const std::string& process) {
  ++wanted_;
  absl::MutexLock lock(&mu_);
  --wanted_;
  std::ifstream file(absl::StrCat("/proc/", launcher_->pid(process), "/statm"));
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

int ProcessCluster::restarts(const std::string& process) {
  ++wanted_;
  absl::MutexLock lock(&mu_);
  --wanted_;
  return launcher_->restarts(process);
}

bool ProcessCluster::AwaitOutput(const std::string& text) {
  const absl::Time deadline = Clock::Real().Now() + kPatience;
  while (Clock::Real().Now() < deadline) {
    if (absl::StrContains(Output(), text)) return true;
    // As in AwaitStatus: other processes write it, and there is nothing to wait on but time.
    usleep(20'000);
  }
  return false;
}

std::string ProcessCluster::http_address() {
  AwaitOutput(" http=");
  const std::string output = Output();
  const size_t begin = output.rfind(" http=") + 6;
  return output.substr(begin, output.find_first_of(" \n", begin) - begin);
}

bool ProcessCluster::AwaitRestarts(const std::string& process, int count) {
  return AwaitStatus(kPatience, [&](const ClusterSummary&) { return restarts(process) >= count; });
}

std::string ProcessCluster::Output() {
  absl::MutexLock lock(&output_mu_);
  return output_;
}

ProcessCluster::Answer ProcessCluster::Ask(const GenerateOptions& options,
                                           const std::function<bool(int tokens)>& on_piece) {
  Answer answer;
  answer.summary = client_->Generate(options, [&](const GeneratedPiece& piece) {
    for (const SampledToken& token : piece.tokens) answer.tokens.push_back(token.token);
    answer.text += piece.text;
    if (!piece.finish_reason.empty()) answer.finish_reason = piece.finish_reason;
    return on_piece == nullptr || on_piece(static_cast<int>(answer.tokens.size()));
  });
  return answer;
}

}  // namespace tandem
