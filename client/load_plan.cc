#include "client/load_plan.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

// The ids below are most often bytes and control tokens.
constexpr int kFirstToken = 300;

absl::Status CheckRange(const char* name, const LengthRange& range) {
  if (range.low >= 1 && range.high >= range.low) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be a length of 1 or more, or LOW:HIGH, not ", range.low, ":", range.high));
}

absl::Status CheckOptions(const LoadOptions& options) {
  if (options.requests < 1) return absl::InvalidArgumentError("requests must be 1 or more");
  if (options.vocabulary <= kFirstToken) {
    return absl::InvalidArgumentError(absl::StrCat("the vocabulary must have more than ", kFirstToken, " tokens"));
  }
  if (options.arrivals == Arrivals::kTrace) {
    if (options.speed <= 0) return absl::InvalidArgumentError("speed must be over 0");
    if (options.token_scale > 0 && options.token_scale <= 1) return absl::OkStatus();
    return absl::InvalidArgumentError("token_scale must be over 0 and at most 1");
  }
  RETURN_IF_ERROR(CheckRange("prompt", options.prompt));
  RETURN_IF_ERROR(CheckRange("output", options.output));
  if (options.max_context_tokens > 0 && options.prompt.high + options.output.high > options.max_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and output of up to ", options.prompt.high, " and ",
                                                   options.output.high, " tokens do not fit the model's context of ",
                                                   options.max_context_tokens));
  }
  if (options.arrivals == Arrivals::kClosed) {
    return options.concurrency >= 1 ? absl::OkStatus() : absl::InvalidArgumentError("concurrency must be 1 or more");
  }
  if (options.requests_per_second > 0) return absl::OkStatus();
  return absl::InvalidArgumentError("rate must be over 0");
}

struct TraceLine {
  absl::Time time;
  PlannedRequest request;
};

absl::StatusOr<TraceLine> ParseAzureLine(const std::string& line) {
  const std::vector<std::string> fields = absl::StrSplit(line, ',');
  TraceLine parsed;
  std::string error;
  if (fields.size() != 3 || !absl::ParseTime("%Y-%m-%d %H:%M:%E*S", fields[0], &parsed.time, &error) ||
      !absl::SimpleAtoi(fields[1], &parsed.request.prompt_tokens) ||
      !absl::SimpleAtoi(fields[2], &parsed.request.output_tokens)) {
    return absl::InvalidArgumentError("expected TIMESTAMP,ContextTokens,GeneratedTokens");
  }
  return parsed;
}

absl::StatusOr<TraceLine> ParseMooncakeLine(const std::string& line) {
  boost::system::error_code error;
  const boost::json::value value = boost::json::parse(line, error);
  const auto* object = error ? nullptr : value.if_object();
  auto number = [&](const char* name) -> const boost::json::value* {
    const auto* field = object == nullptr ? nullptr : object->if_contains(name);
    return field != nullptr && field->is_number() ? field : nullptr;
  };
  const auto *time = number("timestamp"), *input = number("input_length"), *output = number("output_length");
  if (time == nullptr || input == nullptr || output == nullptr) {
    return absl::InvalidArgumentError("expected an object with timestamp, input_length and output_length");
  }
  TraceLine parsed;
  parsed.time = absl::UnixEpoch() + absl::Milliseconds(time->to_number<double>());
  parsed.request.prompt_tokens = input->to_number<int>();
  parsed.request.output_tokens = output->to_number<int>();
  const auto* blocks = object->if_contains("hash_ids");
  if (blocks != nullptr && blocks->is_array()) {
    for (const boost::json::value& id : blocks->get_array()) {
      if (!id.is_number()) return absl::InvalidArgumentError("hash_ids must be numbers");
      parsed.request.blocks.push_back(id.to_number<int64_t>());
    }
  }
  return parsed;
}

absl::StatusOr<LoadPlan> ReadTrace(const LoadOptions& options) {
  std::ifstream file(options.trace);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read the trace ", options.trace));
  const bool is_azure = absl::EndsWith(options.trace, ".csv");
  LoadPlan plan;
  absl::Time first;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (static_cast<int>(plan.requests.size()) == options.requests) break;
    absl::StripTrailingAsciiWhitespace(&line);
    if (line.empty() || (is_azure && number == 1)) continue;
    absl::StatusOr<TraceLine> parsed = is_azure ? ParseAzureLine(line) : ParseMooncakeLine(line);
    if (parsed.ok() && (parsed->request.prompt_tokens < 1 || parsed->request.output_tokens < 1)) {
      parsed = absl::InvalidArgumentError("lengths must be 1 or more");
    }
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(options.trace, ":", number, ": ", parsed.status().message()));
    }
    PlannedRequest& request = parsed->request;
    const auto scale = [&](int& tokens) {
      tokens = std::max(1, static_cast<int>(std::lround(tokens * options.token_scale)));
    };
    scale(request.prompt_tokens);
    scale(request.output_tokens);
    scale(request.block_tokens);
    if (options.max_context_tokens > 0 &&
        int64_t{request.prompt_tokens} + request.output_tokens > options.max_context_tokens) {
      ++plan.left_out;
      continue;
    }
    if (plan.requests.empty()) first = parsed->time;
    request.due = (parsed->time - first) / options.speed;
    request.seed = options.seed + static_cast<uint64_t>(number);
    plan.requests.push_back(std::move(request));
  }
  if (plan.requests.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.trace, ": no request; ", plan.left_out,
                                                   " do not fit the model's context of ", options.max_context_tokens,
                                                   " tokens"));
  }
  std::stable_sort(plan.requests.begin(), plan.requests.end(),
                   [](const PlannedRequest& a, const PlannedRequest& b) { return a.due < b.due; });
  return plan;
}

void AppendTokens(uint64_t seed, int count, int vocabulary, std::vector<TokenId>& tokens) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<TokenId> token(kFirstToken, vocabulary - 1);
  for (int i = 0; i < count; ++i) tokens.push_back(token(random));
}

}  // namespace

absl::StatusOr<LoadPlan> MakeLoadPlan(const LoadOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  if (options.arrivals == Arrivals::kTrace) return ReadTrace(options);
  std::mt19937_64 random(options.seed);
  std::exponential_distribution<double> gap(1);
  std::uniform_int_distribution<int> prompt(options.prompt.low, options.prompt.high);
  std::uniform_int_distribution<int> output(options.output.low, options.output.high);
  LoadPlan plan;
  absl::Duration due;
  for (int i = 0; i < options.requests; ++i) {
    plan.requests.push_back(
        {.due = due, .prompt_tokens = prompt(random), .output_tokens = output(random), .seed = random()});
    if (options.arrivals == Arrivals::kPoisson) due += absl::Seconds(gap(random) / options.requests_per_second);
    if (options.arrivals == Arrivals::kConstant) due = absl::Seconds((i + 1) / options.requests_per_second);
  }
  return plan;
}

std::vector<TokenId> MakePrompt(const PlannedRequest& request, int vocabulary) {
  std::vector<TokenId> tokens;
  tokens.reserve(request.prompt_tokens);
  for (int64_t block : request.blocks) {
    const int room = request.prompt_tokens - static_cast<int>(tokens.size());
    AppendTokens(static_cast<uint64_t>(block) + (uint64_t{1} << 63), std::min(request.block_tokens, room), vocabulary,
                 tokens);
  }
  AppendTokens(request.seed, request.prompt_tokens - static_cast<int>(tokens.size()), vocabulary, tokens);
  return tokens;
}

}  // namespace tandem
