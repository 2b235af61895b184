#include "router/tracing.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/ids.h"

namespace tandem {
namespace {

bool IsHex(absl::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view hex) {
  return std::all_of(hex.begin(), hex.end(), [](char c) { return c == '0'; });
}

std::string DrawId() { return absl::StrCat(absl::Hex(std::max<uint64_t>(1, DrawRandomId()), absl::kZeroPad16)); }

}  // namespace

TraceContext ParseTraceParent(absl::string_view header) {
  const std::vector<absl::string_view> parts = absl::StrSplit(header, '-');
  // Later versions may add parts; ff is none.
  if (parts.size() < 4 || !IsHex(parts[0], 2) || parts[0] == "ff" || (parts[0] == "00" && parts.size() != 4)) return {};
  if (!IsHex(parts[1], 32) || IsZero(parts[1]) || !IsHex(parts[2], 16) || IsZero(parts[2]) || !IsHex(parts[3], 2)) {
    return {};
  }
  const char low = parts[3][1];
  const int flags = low <= '9' ? low - '0' : low - 'a' + 10;
  return {.trace_id = std::string(parts[1]), .parent_id = std::string(parts[2]), .is_sampled = (flags & 1) != 0};
}

std::string TraceParentOf(const TraceContext& trace) {
  if (!trace.is_set() || trace.parent_id.empty()) return "";
  return absl::StrCat("00-", trace.trace_id, "-", trace.parent_id, trace.is_sampled ? "-01" : "-00");
}

TraceContext NewTrace() { return {.trace_id = absl::StrCat(DrawId(), DrawId()), .is_sampled = true}; }

std::vector<Span> SpansOf(const Request& request, const TraceContext& trace, const absl::Status& status,
                          const RequestUsage& usage, absl::Time end, absl::Duration to_wall) {
  const absl::Time arrival = request.arrival;
  std::vector<Span> spans;
  spans.push_back(
      {.trace_id = trace.trace_id,
       .span_id = DrawId(),
       .parent_id = trace.parent_id,
       .name = "tandem.request",
       .start = arrival + to_wall,
       .end = end + to_wall,
       .attributes = {{"tandem.request_id", request.name},
                      {"tandem.prefill_worker", usage.prefill_worker},
                      {"tandem.decode_worker", usage.decode_worker},
                      {"gen_ai.usage.input_tokens", int64_t{usage.prompt_tokens}},
                      {"gen_ai.usage.output_tokens", int64_t{usage.completion_tokens}},
                      {"tandem.cached_tokens", int64_t{usage.cached_tokens}},
                      {"tandem.retries", int64_t{usage.retries}}},
       .error = status.ok() ? "" : absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message())});
  const std::string root = spans[0].span_id;
  const auto add = [&](const char* name, absl::Time start, absl::Duration length) {
    if (length <= absl::ZeroDuration()) return;
    spans.push_back({.trace_id = trace.trace_id,
                     .span_id = DrawId(),
                     .parent_id = root,
                     .name = name,
                     .start = start + to_wall,
                     .end = start + length + to_wall});
  };
  const StageDurations& stages = usage.stages;
  const absl::Time first_token = arrival + stages.queue + stages.prefill;
  add("queue", arrival, stages.queue);
  add("prefill", arrival + stages.queue, stages.prefill);
  // Pushes go on beside prefill, and end when decode has taken over.
  add("transfer", std::max(arrival + stages.queue, first_token + stages.handover - stages.transfer), stages.transfer);
  add("handover", first_token, stages.handover);
  add("decode", end - stages.decode, stages.decode);
  return spans;
}

}  // namespace tandem
