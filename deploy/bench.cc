#include "deploy/bench.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/load_generator.h"
#include "client/load_plan.h"
#include "client/load_report.h"
#include "client/router_client.h"
#include "common/clock.h"
#include "common/status_macros.h"

ABSL_FLAG(std::string, arrivals, "poisson", "bench: poisson, constant, closed or trace.");
ABSL_FLAG(double, rate, 1, "bench: requests a second, of poisson and constant arrivals.");
ABSL_FLAG(int, concurrency, 1, "bench: requests at a time, of closed arrivals.");
ABSL_FLAG(int, requests, 100, "bench: requests to measure; of a trace, at most.");
ABSL_FLAG(int, warm_up, 10, "bench: requests before those, which are not in the report.");
ABSL_FLAG(std::string, prompt_tokens, "128", "bench: length of prompts, or LOW:HIGH.");
ABSL_FLAG(std::string, output_tokens, "64", "bench: length of answers, or LOW:HIGH.");
ABSL_FLAG(std::string, trace, "", "bench: an Azure trace (.csv) or a Mooncake trace (.jsonl).");
ABSL_FLAG(double, speed, 1, "bench: how much faster than it was the trace is replayed.");
ABSL_FLAG(double, token_scale, 1, "bench: times this long are the trace's prompts, answers and shared blocks.");
ABSL_FLAG(std::string, slo, "1s,100ms", "bench: TTFT,TPOT for goodput, several with ; between them.");
ABSL_FLAG(uint64_t, seed, 1, "bench: of arrivals, lengths and prompts.");
ABSL_FLAG(std::string, json, "", "bench: writes the report there, too.");
ABSL_FLAG(std::string, compare, "",
          "bench: a report, to be compared with the one that follows: --compare=A.json B.json.");
ABSL_FLAG(std::string, svg, "", "bench: draws the comparison there.");

namespace tandem {
namespace {

class RouterTarget final : public LoadTarget {
 public:
  RouterTarget(RouterClient& client, std::string model) : client_(client), model_(std::move(model)) {}
  absl::Status Generate(const std::vector<TokenId>& prompt, int output_tokens,
                        const std::function<void(int tokens)>& on_tokens) override {
    GenerateOptions options;
    options.model = model_;
    options.tokens = prompt;
    options.sampling.max_tokens = output_tokens;
    options.sampling.ignore_eos = true;
    return client_
        .Generate(options,
                  [&](const GeneratedPiece& piece) {
                    on_tokens(static_cast<int>(piece.tokens.size()));
                    return true;
                  })
        .status();
  }

 private:
  RouterClient& client_;
  const std::string model_;
};

absl::StatusOr<LengthRange> ParseLengths(const char* flag, const std::string& text) {
  const std::vector<std::string> ends = absl::StrSplit(text, ':');
  LengthRange range;
  if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &range.low) || !absl::SimpleAtoi(ends.back(), &range.high)) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": expected a length or LOW:HIGH, not \"", text, "\""));
  }
  return range;
}

absl::StatusOr<std::vector<Slo>> ParseSlos(const std::string& text) {
  std::vector<Slo> slos;
  for (absl::string_view pair : absl::StrSplit(text, ';', absl::SkipEmpty())) {
    const std::vector<std::string> ends = absl::StrSplit(pair, ',');
    Slo slo;
    if (ends.size() != 2 || !absl::ParseDuration(ends[0], &slo.ttft) || !absl::ParseDuration(ends[1], &slo.tpot)) {
      return absl::InvalidArgumentError(absl::StrCat("--slo: expected TTFT,TPOT such as 1s,100ms, not \"", pair, "\""));
    }
    slos.push_back(slo);
  }
  return slos;
}

absl::StatusOr<LoadOptions> ReadFlags() {
  const std::pair<const char*, Arrivals> known[] = {{"poisson", Arrivals::kPoisson},
                                                    {"constant", Arrivals::kConstant},
                                                    {"closed", Arrivals::kClosed},
                                                    {"trace", Arrivals::kTrace}};
  LoadOptions options;
  const std::string name = absl::GetFlag(FLAGS_arrivals);
  const auto* arrivals =
      std::find_if(std::begin(known), std::end(known), [&](const auto& entry) { return name == entry.first; });
  if (arrivals == std::end(known)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--arrivals: expected poisson, constant, closed or trace, not \"", name, "\""));
  }
  options.arrivals = arrivals->second;
  options.trace = absl::GetFlag(FLAGS_trace);
  if ((options.arrivals == Arrivals::kTrace) == options.trace.empty()) {
    return absl::InvalidArgumentError("--trace=FILE and --arrivals=trace go together");
  }
  if (absl::GetFlag(FLAGS_warm_up) < 0) return absl::InvalidArgumentError("--warm_up: must be 0 or more");
  options.requests_per_second = absl::GetFlag(FLAGS_rate);
  options.concurrency = absl::GetFlag(FLAGS_concurrency);
  options.requests = absl::GetFlag(FLAGS_requests) + absl::GetFlag(FLAGS_warm_up);
  options.speed = absl::GetFlag(FLAGS_speed);
  options.token_scale = absl::GetFlag(FLAGS_token_scale);
  options.seed = absl::GetFlag(FLAGS_seed);
  ASSIGN_OR_RETURN(options.prompt, ParseLengths("prompt_tokens", absl::GetFlag(FLAGS_prompt_tokens)));
  ASSIGN_OR_RETURN(options.output, ParseLengths("output_tokens", absl::GetFlag(FLAGS_output_tokens)));
  return options;
}

// What the figures belong to, without which nobody could compare them later.
std::vector<std::pair<std::string, std::string>> DescribeContext(const ClusterSummary& cluster,
                                                                 const ModelSummary& model) {
  std::string cpu = "unknown";
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> field = absl::StrSplit(line, absl::MaxSplits(": ", 1));
    if (absl::StartsWith(line, "model name") && field.size() == 2) cpu = field[1];
  }
  std::vector<std::string> workers, links;
  for (const WorkerSummary& worker : cluster.workers) {
    workers.push_back(absl::StrFormat("%s (%s, %d pages)", worker.worker_id, worker.role, worker.total_pages));
  }
  for (const LinkSummary& link : cluster.links) {
    links.push_back(absl::StrFormat("%s -> %s: %s (%s), %.1f GB/s", link.prefill_worker, link.decode_worker,
                                    link.transport, link.path, link.gigabytes_per_second));
  }
  return {{"date", absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::Now(), absl::UTCTimeZone())},
          {"client_cpu", absl::StrCat(cpu, ", ", sysconf(_SC_NPROCESSORS_ONLN), " cores")},
          {"model", model.name},
          {"workers", absl::StrJoin(workers, "; ")},
          {"links", absl::StrJoin(links, "; ")},
          {"arrivals", absl::GetFlag(FLAGS_arrivals)},
          {"rate", absl::StrCat(absl::GetFlag(FLAGS_rate))},
          {"concurrency", absl::StrCat(absl::GetFlag(FLAGS_concurrency))},
          {"prompt_tokens", absl::GetFlag(FLAGS_prompt_tokens)},
          {"output_tokens", absl::GetFlag(FLAGS_output_tokens)},
          {"trace", absl::GetFlag(FLAGS_trace)},
          {"speed", absl::StrCat(absl::GetFlag(FLAGS_speed))},
          {"token_scale", absl::StrCat(absl::GetFlag(FLAGS_token_scale))},
          {"seed", absl::StrCat(absl::GetFlag(FLAGS_seed))}};
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

// A report that cannot be written is better known before the load than after it.
absl::Status CheckWritable(absl::string_view flag, const std::string& path) {
  if (path.empty() || std::ofstream(path, std::ios::app)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, "=", path, " cannot be written"));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

absl::Status Compare(const std::string& a, const std::string& b) {
  ASSIGN_OR_RETURN(const std::string of_a, ReadFile(a));
  ASSIGN_OR_RETURN(const std::string of_b, ReadFile(b));
  ASSIGN_OR_RETURN(const LoadComparison comparison, CompareLoads(a, of_a, b, of_b));
  printf("%s", comparison.table.c_str());
  const std::string svg = absl::GetFlag(FLAGS_svg);
  RETURN_IF_ERROR(CheckWritable("--svg", svg));
  return svg.empty() ? absl::OkStatus() : WriteFile(svg, comparison.svg);
}

constexpr absl::Duration kLoggedProgress = absl::Seconds(10);  // Between lines that do not go to a terminal.

absl::Status Measure(const std::string& router) {
  ASSIGN_OR_RETURN(LoadOptions options, ReadFlags());
  const std::string json = absl::GetFlag(FLAGS_json);
  RETURN_IF_ERROR(CheckWritable("--json", json));
  ASSIGN_OR_RETURN(const std::vector<Slo> slos, ParseSlos(absl::GetFlag(FLAGS_slo)));
  ASSIGN_OR_RETURN(const ClientIdentity identity, IdentityOfEnvironment());
  RouterClient client(router, identity);
  ASSIGN_OR_RETURN(const std::vector<ModelSummary> models, client.Models());
  ASSIGN_OR_RETURN(const ClusterSummary cluster, client.Status());
  if (models.empty() || !cluster.ready)
    return absl::UnavailableError("the cluster is not ready (tandem status --wait)");
  options.vocabulary = models[0].vocabulary_size;
  options.max_context_tokens = models[0].max_context_tokens;
  ASSIGN_OR_RETURN(const LoadPlan plan, MakeLoadPlan(options));
  if (plan.left_out > 0) {
    fprintf(stderr, "tandem: %d requests of the trace are longer than the model's context of %d tokens: left out\n",
            plan.left_out, options.max_context_tokens);
  }
  RouterTarget target(client, models[0].name);
  const bool on_terminal = isatty(STDERR_FILENO);
  absl::Time told = Clock::Real().Now();
  const std::vector<RequestRecord> records = RunLoad(
      plan, options, target, Clock::Real(), [](absl::Time due) { absl::SleepFor(due - Clock::Real().Now()); },
      [&](const LoadProgress& progress) {
        // A terminal's line is written anew each time; into a log go a few.
        const absl::Time now = Clock::Real().Now();
        if (!on_terminal && now - told < kLoggedProgress) return;
        told = now;
        fprintf(stderr, "%s%d of %zu sent, %d ended, %d failed%s", on_terminal ? "\r" : "", progress.sent,
                plan.requests.size(), progress.ended, progress.failed, on_terminal ? "" : "\n");
      });
  if (on_terminal) fprintf(stderr, "\n");
  LoadReport report = SummariseLoad(records, absl::GetFlag(FLAGS_warm_up), slos);
  // Some may have been starting before.
  const absl::StatusOr<ClusterSummary> after = client.Status();
  report.workers = static_cast<int>(std::max(cluster.workers.size(), after.ok() ? after->workers.size() : 0));
  printf("%s", DescribeLoad(report).c_str());
  if (!json.empty()) RETURN_IF_ERROR(WriteFile(json, LoadToJson(report, DescribeContext(cluster, models[0]))));
  if (report.failed == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(report.failed, " of ", report.requests, " requests failed"));
}

}  // namespace

int Bench(const std::string& router, const std::string& other) {
  const std::string compare = absl::GetFlag(FLAGS_compare);
  absl::Status status;
  if (compare.empty() != other.empty()) {
    status = absl::InvalidArgumentError("bench compares two reports: --compare=A.json B.json");
  } else {
    status = compare.empty() ? Measure(router) : Compare(compare, other);
  }
  if (status.ok()) return 0;
  fflush(stdout);  // Before what goes to standard error.
  fprintf(stderr, "tandem: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace tandem
