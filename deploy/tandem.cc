// tandem: the command line.

#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cluster_screen.h"
#include "client/rolling_restart.h"
#include "client/router_client.h"
#include "common/clock.h"
#include "common/error_reason.h"
#include "common/topology.h"
#include "common/topology_text.h"
#include "deploy/bench.h"
#include "deploy/check.h"
#include "deploy/launcher.h"

ABSL_FLAG(std::string, router, "127.0.0.1:7070",
          "Router for generate, status, top, explain, drain, restart and bench.");
ABSL_FLAG(std::string, text, "", "generate: continue this text instead of answering a chat message.");
ABSL_FLAG(int, max_tokens, 256, "generate: most tokens to generate; 0: up to the context length.");
ABSL_FLAG(double, temperature, 0, "generate: 0 is greedy.");
ABSL_FLAG(double, top_p, 1, "generate: keep the smallest set of tokens with this probability.");
ABSL_FLAG(std::string, json_schema, "", "generate: file with a JSON schema; the answer is JSON that it describes.");
ABSL_FLAG(absl::Duration, timeout, absl::Minutes(5), "generate: deadline; restart: of each worker.");
ABSL_FLAG(bool, times, false, "generate: print where the time went.");
ABSL_FLAG(bool, print_config, false,
          "check: print every setting that holds, also those left to their defaults, as YAML.");
ABSL_FLAG(bool, wait, false, "status: wait until the cluster is ready, with a line per process.");

namespace tandem {
namespace {

constexpr char kUsage[] = R"(Serves language models with prefill and decode on separate workers.

  tandem check FILE            check a topology and print what it would start, or, with --print-config, all settings
  tandem up FILE               start it here; Ctrl-C drains and stops, twice stops at once
  tandem generate "question"   ask the model (--text="..." continues a text instead)
  tandem status [--wait]       show workers, links and load
  tandem top                   watch workers, queues, pages, links and speeds
  tandem explain REQUEST       why a request went to the workers that it went to
  tandem drain WORKER          let a worker finish and leave
  tandem restart POOL          restart its workers one after the other, while the others serve
  tandem bench                 put load on it and report latencies, throughput and goodput

The environment's TANDEM_API_KEY is sent where the router wants a key; for TLS, TANDEM_TLS_AUTHORITIES names a file with
the certificates of who signs the router's (docs/security.md).

--help lists all flags, --version says which version this is.)";

volatile sig_atomic_t interrupts = 0;

int Fail(const absl::Status& status, int code = 1) {
  // Some of gRPC's errors have no text.
  const std::string text = status.message().empty() ? status.ToString() : std::string(status.message());
  fprintf(stderr, "tandem: %s\n", text.c_str());
  if (absl::IsUnauthenticated(status)) fprintf(stderr, "tandem: the environment's TANDEM_API_KEY is what is sent\n");
  if (auto retry_after = GetRetryAfter(status); retry_after.has_value()) {
    fprintf(stderr, "tandem: try again in %s\n", absl::FormatDuration(*retry_after).c_str());
  }
  return code;
}

// Run has looked at the environment.
RouterClient NewClient() { return RouterClient(absl::GetFlag(FLAGS_router), *IdentityOfEnvironment()); }

// Where this program and those that it starts are.
std::string ProgramFolder() { return std::filesystem::read_symlink("/proc/self/exe").parent_path(); }

// What is no path stays as it is; reading it says so.
std::string AbsolutePath(const std::string& file) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(file, error);
  return error ? file : path.string();
}

int Check(const std::string& file) {
  absl::StatusOr<Topology> topology = Topology::Load(file);
  if (!topology.ok()) return Fail(topology.status(), 2);
  absl::StatusOr<std::string> table = DescribeTopology(*topology, ProgramFolder());
  if (!table.ok()) return Fail(table.status(), 2);
  printf("%s", (absl::GetFlag(FLAGS_print_config) ? TopologyText(*topology) : *table).c_str());
  return 0;
}

int Up(const std::string& file) {
  signal(SIGINT, SIG_DFL);  // A script that starts it in the background leaves it ignored.
  absl::StatusOr<Topology> topology = Topology::Load(AbsolutePath(file));
  if (!topology.ok()) return Fail(topology.status(), 2);
  absl::StatusOr<std::string> table = DescribeTopology(*topology, ProgramFolder());
  if (!table.ok()) return Fail(table.status(), 2);
  printf("%s", table->c_str());
  fflush(stdout);
  // Workers of a second cluster would register at the router of the first, and push each other out.
  const auto tls = LoadTls(topology->tls);
  if (!tls.ok()) return Fail(tls.status(), 2);
  for (const std::string& address : topology->RouterAddresses()) {
    const absl::Status there = RouterClient(address, {.tls = *tls}).Status(absl::Milliseconds(300)).status();
    if (there.ok() || absl::IsUnauthenticated(there)) {
      return Fail(
          absl::AlreadyExistsError(absl::StrCat("a router answers at ", address, " already; stop that cluster first")));
    }
  }
  if (absl::Status status = CheckPortsAreFree(*topology); !status.ok()) return Fail(status);
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupts = interrupts + 1; };
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
  Launcher::Options options;
  options.program_folder = ProgramFolder();
  options.on_line = [](const std::string& process, const std::string& line) {
    fprintf(stderr, "%-10s | %s\n", process.c_str(), line.c_str());
  };
  Launcher launcher(*topology, std::move(options));
  if (absl::Status status = launcher.StartAll(); !status.ok()) return Fail(status);
  while (interrupts == 0) launcher.RunFor(absl::Milliseconds(200));
  fprintf(stderr, "%-10s | draining and stopping; once more stops at once\n", "tandem");
  launcher.StopAll(absl::Seconds(35), [] { return interrupts > 1; });
  if (interrupts <= 1) return 0;
  fprintf(stderr, "%-10s | stopped at once: what was running was cut off\n", "tandem");
  return 1;
}

void PrintTimes(const GenerateSummary& summary, const std::string& finish_reason) {
  const double seconds = absl::ToDoubleSeconds(summary.decode);
  const int decoded = summary.completion_tokens - 2;
  const bool has_decode = !summary.decode_worker.empty();
  const bool is_split = !summary.prefill_worker.empty() && has_decode;
  auto line = [](const char* stage, absl::Duration time, const std::string& note) {
    printf("  %-14s %9.2f ms  %s\n", stage, absl::ToDoubleMilliseconds(time), note.c_str());
  };
  printf("\nwhere the time went:\n");
  line("queue", summary.queue, "");
  line("prefill", summary.prefill,
       absl::StrCat(summary.prompt_tokens, " tokens, ", summary.cached_tokens, " of them cached, on ",
                    summary.prefill_worker.empty() ? summary.decode_worker : summary.prefill_worker));
  if (is_split) {
    line("transfer", summary.transfer, "KV to the decode worker, beside prefill");
    line("hand-over gap", summary.handover, "between the first two tokens, beyond a decode step");
  }
  if (has_decode) {
    line("decode", summary.decode,
         decoded > 0 && seconds > 0 ? absl::StrFormat("%.1f tokens/s on %s", decoded / seconds, summary.decode_worker)
                                    : absl::StrCat("on ", summary.decode_worker));
  }
  printf("  %d tokens; end: %s\n", summary.completion_tokens, finish_reason.c_str());
}

int Generate(const std::string& question) {
  GenerateOptions options;
  if (std::string text = absl::GetFlag(FLAGS_text); !text.empty()) {
    if (!question.empty()) return Fail(absl::InvalidArgumentError("generate takes a question or --text, not both"), 2);
    options.text = text;
  } else if (!question.empty()) {
    options.chat = {{"user", question}};
  } else {
    return Fail(absl::InvalidArgumentError("generate needs a \"question\", or --text=\"...\" to continue"), 2);
  }
  options.sampling.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.sampling.temperature = static_cast<float>(absl::GetFlag(FLAGS_temperature));
  options.sampling.top_p = static_cast<float>(absl::GetFlag(FLAGS_top_p));
  options.timeout = absl::GetFlag(FLAGS_timeout);
  if (const std::string file = absl::GetFlag(FLAGS_json_schema); !file.empty()) {
    std::ifstream stream(file);
    std::stringstream schema;
    if (!(schema << stream.rdbuf())) {
      return Fail(absl::InvalidArgumentError(absl::StrCat("--json_schema=", file, " cannot be read, or is empty")), 2);
    }
    options.sampling.format =
        std::make_shared<OutputFormat>(OutputFormat{OutputFormat::Kind::kJsonSchema, schema.str()});
  }
  RouterClient client = NewClient();
  std::string finish_reason;
  absl::StatusOr<GenerateSummary> summary = client.Generate(options, [&](const GeneratedPiece& piece) {
    fputs(piece.text.c_str(), stdout);
    fflush(stdout);
    if (!piece.finish_reason.empty()) finish_reason = piece.finish_reason;
    return true;
  });
  printf("\n");
  fflush(stdout);  // Before what goes to standard error.
  if (absl::IsDeadlineExceeded(summary.status())) {
    return Fail(absl::DeadlineExceededError(absl::StrCat(
        "no end within --timeout=", absl::FormatDuration(options.timeout), ": ", summary.status().message())));
  }
  if (!summary.ok()) return Fail(summary.status());
  if (finish_reason == "length") {
    const bool by_limit = summary->completion_tokens == options.sampling.max_tokens;
    fprintf(stderr, "tandem: cut off after %d tokens: %s\n", summary->completion_tokens,
            by_limit ? "--max_tokens sets the limit" : "the context is full");
  }
  if (absl::GetFlag(FLAGS_times)) PrintTimes(*summary, finish_reason);
  return 0;
}

void PrintStatus(const ClusterSummary& status) {
  printf("%s, %d active requests\n", status.ready ? "ready" : "not ready", status.active_requests);
  for (const WorkerSummary& worker : status.workers) {
    printf("  %-12s %-8s %-10s running %d, waiting %d, pages", worker.worker_id.c_str(), worker.role.c_str(),
           worker.state.c_str(), worker.running, worker.waiting);
    for (const auto& [state, count] : worker.pages) {
      if (count > 0) printf(" %s %d", state.c_str(), count);
    }
    printf(" of %d\n", worker.total_pages);
  }
  for (const LinkSummary& link : status.links) {
    printf("  %s -> %s: %s", link.prefill_worker.c_str(), link.decode_worker.c_str(), link.up ? "up" : "down");
    if (link.up) {
      printf(", %s (%s), %.1f GB/s, %.1f us", link.transport.c_str(), link.path.c_str(), link.gigabytes_per_second,
             link.latency_us);
      if (!link.error.empty()) printf("; passed over: %s", link.error.c_str());
    }
    if (!link.up && !link.error.empty()) printf(": %s", link.error.c_str());
    printf("\n");
  }
}

// Every prefill worker that is there is linked to every decode worker.
bool AllPairsAreUp(const ClusterSummary& status) {
  auto workers = [&](const char* role) {
    return std::count_if(status.workers.begin(), status.workers.end(),
                         [&](const WorkerSummary& worker) { return worker.role == role; });
  };
  return std::count_if(status.links.begin(), status.links.end(), [](const LinkSummary& link) { return link.up; }) ==
         workers("prefill") * workers("decode");
}

int WaitUntilReady(RouterClient& client) {
  std::vector<std::string> seen;
  auto say_once = [&](const std::string& what) {
    if (std::find(seen.begin(), seen.end(), what) != seen.end()) return;
    seen.push_back(what);
    printf("%s\n", what.c_str());
    fflush(stdout);
  };
  say_once(absl::StrCat("waiting for the router at ", absl::GetFlag(FLAGS_router)));
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  absl::Time ready_since = absl::InfiniteFuture();
  while (absl::Now() < deadline) {
    absl::StatusOr<ClusterSummary> status = client.Status();
    if (absl::IsUnauthenticated(status.status())) return Fail(status.status());
    if (status.ok()) {
      say_once("router is up");
      for (const WorkerSummary& worker : status->workers)
        say_once(absl::StrCat(worker.worker_id, " is ", worker.state));
      for (const LinkSummary& link : status->links) {
        const std::string pair = absl::StrCat(link.prefill_worker, " -> ", link.decode_worker);
        if (link.up) {
          say_once(absl::StrCat(pair, " linked by ", link.transport));
        } else if (!link.error.empty()) {
          say_once(absl::StrCat(pair, " not linked: ", link.error));
        }
      }
      if (!status->ready) ready_since = absl::InfiniteFuture();
      if (status->ready) ready_since = std::min(ready_since, absl::Now());
      // The other pairs come in the same moment, or will not come soon.
      if (status->ready && (AllPairsAreUp(*status) || absl::Now() - ready_since > absl::Seconds(5))) return 0;
    }
    usleep(100'000);
  }
  return Fail(absl::DeadlineExceededError("the cluster did not become ready within a minute"));
}

int Status() {
  RouterClient client = NewClient();
  if (absl::GetFlag(FLAGS_wait)) return WaitUntilReady(client);
  absl::StatusOr<ClusterSummary> status = client.Status();
  if (!status.ok()) return Fail(status.status());
  PrintStatus(*status);
  return status->ready ? 0 : 3;
}

// Until Ctrl-C, where a terminal shows it; else once.
int Top() {
  RouterClient client = NewClient();
  const bool is_terminal = isatty(STDOUT_FILENO) != 0;
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupts = interrupts + 1; };
  for (int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  do {
    winsize size = {};
    const bool has_size = is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    absl::StatusOr<ClusterSummary> cluster = client.Status();
    if (!cluster.ok() && !is_terminal) return Fail(cluster.status());
    if (is_terminal) printf("\x1b[H\x1b[2J");  // A clear screen.
    if (cluster.ok()) {
      printf("%s",
             DrawCluster(absl::GetFlag(FLAGS_router), *cluster, has_size ? size.ws_col : 200, is_terminal).c_str());
    } else {
      printf("%s\n", std::string(cluster.status().message()).c_str());
    }
    fflush(stdout);
    if (is_terminal && interrupts == 0) usleep(1'000'000);
  } while (is_terminal && interrupts == 0);
  return 0;
}

int Explain(const std::string& request) {
  absl::string_view name = request;
  if (!absl::ConsumePrefix(&name, "chatcmpl-")) absl::ConsumePrefix(&name, "cmpl-");  // As HTTP's answers call it.
  auto decisions = NewClient().Explain(std::string(name));
  if (!decisions.ok()) return Fail(decisions.status());
  for (const auto& [age, what] : *decisions) {
    printf("%s ago: %s\n", absl::FormatDuration(absl::Trunc(age, absl::Milliseconds(1))).c_str(), what.c_str());
  }
  return 0;
}

// Of those that take work.
bool IsLastOfItsRole(const ClusterSummary& cluster, const std::string& name) {
  const auto worker = std::find_if(cluster.workers.begin(), cluster.workers.end(),
                                   [&](const WorkerSummary& one) { return one.worker_id == name; });
  return worker != cluster.workers.end() &&
         std::none_of(cluster.workers.begin(), cluster.workers.end(), [&](const WorkerSummary& other) {
           return other.role == worker->role && other.worker_id != name && other.state == "ready";
         });
}

int Drain(const std::string& worker) {
  RouterClient client = NewClient();
  const absl::StatusOr<ClusterSummary> before = client.Status();
  if (absl::Status status = client.Drain(worker); !status.ok()) return Fail(status);
  if (before.ok() && IsLastOfItsRole(*before, worker)) {
    fprintf(stderr, "tandem: it is the last one of its role: requests fail until another one is there\n");
  }
  printf("%s finishes what it has and leaves\n", worker.c_str());
  return 0;
}

class CommandLineRestart final : public RollingRestartActions {
 public:
  absl::StatusOr<ClusterSummary> Status() override { return client_.Status(); }
  absl::Status Restart(const std::string& worker) override { return client_.Drain(worker, /*start_again=*/true); }
  void Sleep(absl::Duration duration) override { absl::SleepFor(duration); }
  void Tell(const std::string& line) override {
    printf("%s\n", line.c_str());
    fflush(stdout);
  }

 private:
  RouterClient client_ = NewClient();
};

int Restart(const std::string& pool) {
  CommandLineRestart actions;
  const absl::Status status = RestartPool(pool, absl::GetFlag(FLAGS_timeout), Clock::Real(), actions);
  return status.ok() ? 0 : Fail(status);
}

struct Command {
  const char* name;
  const char* operand;  // How usage names it; null where there is none.
  bool needs_operand;
  bool calls_router;  // As the environment says.
  int (*run)(const std::string& operand);
};

constexpr Command kCommands[] = {
    {"check", "FILE", true, false, Check},
    {"up", "FILE", true, false, Up},
    {"generate", "\"question\"", false, true, Generate},
    {"status", nullptr, false, true, [](const std::string&) { return Status(); }},
    {"top", nullptr, false, true, [](const std::string&) { return Top(); }},
    {"explain", "REQUEST", true, true, Explain},
    {"drain", "WORKER", true, true, Drain},
    {"restart", "POOL", true, true, Restart},
    {"bench", "B.json", false, true,
     [](const std::string& other) { return Bench(absl::GetFlag(FLAGS_router), other); }},
};

int Run(const std::vector<char*>& arguments) {
  const std::string name = arguments.size() > 1 ? arguments[1] : "";
  const auto* command = std::find_if(std::begin(kCommands), std::end(kCommands),
                                     [&](const Command& known) { return name == known.name; });
  if (command == std::end(kCommands)) {
    if (!name.empty()) fprintf(stderr, "tandem: there is no command %s\n\n", name.c_str());
    fprintf(stderr, "%s\n", kUsage);
    return 2;
  }
  const size_t operands = arguments.size() - 2;
  if (operands < (command->needs_operand ? 1 : 0) || operands > (command->operand == nullptr ? 0 : 1)) {
    fprintf(stderr, "tandem: usage: tandem %s%s%s\n", name.c_str(), command->operand == nullptr ? "" : " ",
            command->operand == nullptr ? "" : command->operand);
    return 2;
  }
  if (command->calls_router) {
    if (absl::Status status = IdentityOfEnvironment().status(); !status.ok()) return Fail(status, 2);
  }
  return command->run(operands == 0 ? "" : arguments[2]);
}

// The flags of all commands.
void PrintHelp() {
  printf("%s\n\n", kUsage);
  const auto all = absl::GetAllFlags();
  std::map<absl::string_view, const absl::CommandLineFlag*> sorted;
  for (const auto& [name, flag] : all) {
    if (absl::StrContains(flag->Filename(), "deploy/")) sorted[name] = flag;
  }
  for (const auto& [name, flag] : sorted) {
    printf("  --%s (%s); default: \"%s\"\n", std::string(name).c_str(), flag->Help().c_str(),
           flag->DefaultValue().c_str());
  }
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  // As people type it: --max-tokens for --max_tokens.
  for (char* argument : absl::MakeSpan(argv + 1, std::max(argc - 1, 0))) {
    absl::string_view name = argument;
    if (name == "--") break;
    if (name == "--help" || name == "-h") {
      tandem::PrintHelp();
      return 0;
    }
    if (name == "--version") {
      puts("tandem " TANDEM_VERSION);
      return 0;
    }
    if (!absl::ConsumePrefix(&name, "--")) continue;
    name = name.substr(0, name.find('='));
    const std::string flag = absl::StrReplaceAll(name, {{"-", "_"}});
    if (absl::FindCommandLineFlag(flag) != nullptr) std::copy(flag.begin(), flag.end(), argument + 2);
  }
  absl::SetProgramUsageMessage(tandem::kUsage);
  return tandem::Run(absl::ParseCommandLine(argc, argv));
}
