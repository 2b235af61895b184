#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/request.h"

namespace tandem {

// Part of a trace, as OpenTelemetry has it. Times are the wall clock's.
struct Span {
  std::string trace_id, span_id, parent_id;  // In hex: 32, 16 and 16 digits; no parent: "".
  std::string name;
  absl::Time start, end;
  std::vector<std::pair<std::string, std::variant<std::string, int64_t>>> attributes;
  std::string error;  // Empty: it ended well.
};

// A W3C traceparent ("00-<trace id>-<parent id>-<flags>"); not set for anything else, as the standard wants it.
TraceContext ParseTraceParent(absl::string_view header);
// The other way round; empty where none is set.
std::string TraceParentOf(const TraceContext& trace);
// A trace that begins here.
TraceContext NewTrace();

// The spans of a call that ended at `end`: one for the whole, and in it one for each stage that it had (queue, prefill,
// transfer, handover, decode), whose times are those that workers and router measured. `request` and `end` are by the
// router's clock, which `to_wall` leads over to the wall clock.
std::vector<Span> SpansOf(const Request& request, const TraceContext& trace, const absl::Status& status,
                          const RequestUsage& usage, absl::Time end, absl::Duration to_wall);

}  // namespace tandem
