#include "router/http/span_exporter.h"

#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "router/http/json_string.h"

namespace tandem {
namespace {

constexpr size_t kMostWaiting = 8192;
constexpr absl::Duration kBetweenWarnings = absl::Minutes(1);

void AppendAttribute(absl::string_view key, const std::variant<std::string, int64_t>& value, std::string& out) {
  absl::StrAppend(&out, "{\"key\":", JsonString(key), ",\"value\":{");
  if (const auto* number = std::get_if<int64_t>(&value)) {
    absl::StrAppend(&out, "\"intValue\":\"", *number, "\"}}");  // 64 bits are strings in protobuf's JSON.
  } else {
    absl::StrAppend(&out, "\"stringValue\":", JsonString(std::get<std::string>(value)), "}}");
  }
}

void AppendSpan(const Span& span, std::string& out) {
  constexpr int kServer = 2, kInternal = 1;
  absl::StrAppend(&out, "{\"traceId\":\"", span.trace_id, "\",\"spanId\":\"", span.span_id, "\",\"parentSpanId\":\"",
                  span.parent_id, "\",\"name\":", JsonString(span.name),
                  ",\"kind\":", span.attributes.empty() ? kInternal : kServer, ",\"startTimeUnixNano\":\"",
                  absl::ToUnixNanos(span.start), "\",\"endTimeUnixNano\":\"", absl::ToUnixNanos(span.end),
                  "\",\"attributes\":[");
  for (const auto& [key, value] : span.attributes) {
    if (&key != &span.attributes.front().first) out += ",";
    AppendAttribute(key, value, out);
  }
  out += "],\"status\":{";
  if (!span.error.empty()) absl::StrAppend(&out, "\"code\":2,\"message\":", JsonString(span.error));
  out += "}}";
}

}  // namespace

std::string OtlpJson(const std::vector<Span>& spans, absl::string_view service) {
  std::string out = "{\"resourceSpans\":[{\"resource\":{\"attributes\":[";
  AppendAttribute("service.name", std::string(service), out);
  out += "]},\"scopeSpans\":[{\"scope\":{\"name\":\"tandem\"},\"spans\":[";
  for (const Span& span : spans) {
    if (&span != &spans.front()) out += ",";
    AppendSpan(span, out);
  }
  out += "]}]}]}";
  return out;
}

SpanExporter::SpanExporter(Options options) : options_(std::move(options)), thread_([this] { Main(); }) {}

SpanExporter::~SpanExporter() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void SpanExporter::Add(std::vector<Span> spans) {
  const int64_t count = static_cast<int64_t>(spans.size());
  {
    absl::MutexLock lock(&mu_);
    if (waiting_.size() + spans.size() <= kMostWaiting) {
      std::move(spans.begin(), spans.end(), std::back_inserter(waiting_));
      return;
    }
  }
  NoteDropped(count, "the collector is too slow");
}

int64_t SpanExporter::dropped() const {
  absl::MutexLock lock(&mu_);
  return dropped_;
}

void SpanExporter::NoteDropped(int64_t count, const std::string& reason) {
  int64_t all = 0;
  {
    absl::MutexLock lock(&mu_);
    dropped_ += count;
    if (absl::Now() - told_ < kBetweenWarnings) return;
    told_ = absl::Now();
    all = dropped_;
  }
  LogWarning("spans were dropped", {{"endpoint", options_.endpoint}, {"reason", reason}, {"dropped", all}});
}

void SpanExporter::Main() {
  for (bool is_last = false; !is_last;) {
    std::vector<Span> batch;
    {
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&stopping_), options_.delay);
      is_last = stopping_;
      batch.swap(waiting_);
    }
    if (batch.empty()) continue;
    const std::string error = Post(OtlpJson(batch, options_.service));
    if (!error.empty()) NoteDropped(static_cast<int64_t>(batch.size()), error);
  }
}

std::string SpanExporter::Post(const std::string& body) const {
  const size_t colon = options_.endpoint.rfind(':');
  boost::asio::ip::tcp::iostream stream;
  stream.expires_after(absl::ToChronoMilliseconds(options_.timeout));
  stream.connect(options_.endpoint.substr(0, colon), options_.endpoint.substr(colon + 1));
  if (!stream) return stream.error().message();
  stream << "POST /v1/traces HTTP/1.1\r\nHost: " << options_.endpoint
         << "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " << body.size() << "\r\n\r\n"
         << body << std::flush;
  std::string version, status;
  stream >> version >> status;
  if (!absl::StartsWith(version, "HTTP/")) return stream ? "it does not speak HTTP" : stream.error().message();
  return absl::StartsWith(status, "2") ? "" : absl::StrCat("it answers ", status);
}

}  // namespace tandem
