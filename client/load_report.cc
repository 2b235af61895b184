#include "client/load_report.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

absl::Duration MeanGap(const RequestRecord& record) {
  return record.output_tokens < 2 ? absl::ZeroDuration()
                                  : (record.last_token - record.first_token) / (record.output_tokens - 1);
}

bool Meets(const RequestRecord& record, const Slo& slo) {
  return record.status.ok() && record.first_token - record.due <= slo.ttft && MeanGap(record) <= slo.tpot;
}

std::string SloName(const Slo& slo) {
  return absl::StrCat("TTFT ", absl::FormatDuration(slo.ttft), ", TPOT ", absl::FormatDuration(slo.tpot));
}

const std::pair<const char*, Distribution LoadReport::*> kDistributions[] = {{"ttft", &LoadReport::ttft},
                                                                             {"tpot", &LoadReport::tpot},
                                                                             {"itl", &LoadReport::itl},
                                                                             {"e2e", &LoadReport::e2e},
                                                                             {"send_delay", &LoadReport::send_delay}};
const std::pair<const char*, double LoadReport::*> kRates[] = {
    {"requests_per_second", &LoadReport::requests_per_second},
    {"prompt_tokens_per_second", &LoadReport::prompt_tokens_per_second},
    {"output_tokens_per_second", &LoadReport::output_tokens_per_second}};
const std::pair<const char*, double Distribution::*> kStatistics[] = {
    {"mean", &Distribution::mean}, {"p50", &Distribution::p50}, {"p90", &Distribution::p90},
    {"p95", &Distribution::p95},   {"p99", &Distribution::p99}, {"p99.9", &Distribution::p999},
    {"max", &Distribution::max}};

// What a comparison shows, as names in the JSON; true: more is better.
constexpr struct {
  const char *group, *name;
  bool more_is_better;
} kCompared[] = {{"ttft_ms", "p50", false},
                 {"ttft_ms", "p99", false},
                 {"tpot_ms", "p50", false},
                 {"tpot_ms", "p99", false},
                 {"itl_ms", "p50", false},
                 {"itl_ms", "p99", false},
                 {"e2e_ms", "p50", false},
                 {"e2e_ms", "p99", false},
                 {"throughput", "requests_per_second", true},
                 {"throughput", "output_tokens_per_second", true}};

absl::StatusOr<boost::json::object> ParseReport(const std::string& name, const std::string& json) {
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(json, error);
  if (error || !value.is_object()) return absl::InvalidArgumentError(absl::StrCat(name, " is no JSON object"));
  for (const auto& compared : kCompared) {
    const auto* group = value.get_object().if_contains(compared.group);
    const auto* number =
        group != nullptr && group->is_object() ? group->get_object().if_contains(compared.name) : nullptr;
    if (number == nullptr || !number->is_number()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is no report of tandem bench: ", compared.group, ".", compared.name, " is missing"));
    }
  }
  return std::move(value.get_object());
}

// A file's name as text of XML.
std::string Escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '<' || c == '>' || c == '&' || c == '"') {
      absl::StrAppend(&out, "&#", static_cast<int>(c), ";");
    } else {
      out += c;
    }
  }
  return out;
}

struct ChartBar {
  std::string name;
  double ratio;  // B / A.
  bool is_better;
};

// Horizontal bars on a logarithmic scale around 1.
std::string DrawBars(const std::string& title, absl::Span<const ChartBar> bars) {
  constexpr int kWidth = 760, kLeft = 230, kRow = 26, kTop = 50, kHalf = 230, kMiddle = kLeft + kHalf;
  double widest = std::log(1.25);
  for (const ChartBar& bar : bars) widest = std::max(widest, std::abs(std::log(bar.ratio)));
  const int height = kTop + kRow * static_cast<int>(bars.size()) + 30;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
      "font-size=\"13\">\n<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n<text x=\"10\" y=\"24\">%s</text>\n",
      kWidth, height, kWidth, height, Escape(title));
  for (size_t i = 0; i < bars.size(); ++i) {
    const double length = std::log(bars[i].ratio) / widest * kHalf;
    const int y = kTop + kRow * static_cast<int>(i);
    absl::StrAppendFormat(&svg, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", kLeft - 10, y + 14,
                          Escape(bars[i].name));
    absl::StrAppendFormat(&svg, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"16\" fill=\"%s\"/>\n",
                          std::min<double>(kMiddle, kMiddle + length), y, std::abs(length),
                          bars[i].is_better ? "#2e8b57" : "#c0392b");
    absl::StrAppendFormat(&svg, "<text x=\"%d\" y=\"%d\">%.3f</text>\n", kWidth - 60, y + 14, bars[i].ratio);
  }
  absl::StrAppendFormat(&svg, "<line x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\" stroke=\"#333\"/>\n</svg>\n", kMiddle,
                        kMiddle, kTop - 8, height - 24);
  return svg;
}

}  // namespace

Distribution Describe(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  // The smallest value that is not under this share of all.
  auto at = [&](double share) {
    return values[static_cast<size_t>(std::ceil(share * static_cast<double>(values.size()))) - 1];
  };
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {.count = values.size(),
          .mean = sum / static_cast<double>(values.size()),
          .p50 = at(.5),
          .p90 = at(.9),
          .p95 = at(.95),
          .p99 = at(.99),
          .p999 = at(.999),
          .max = values.back()};
}

LoadReport SummariseLoad(absl::Span<const RequestRecord> records, int warm_up, absl::Span<const Slo> slos) {
  LoadReport report;
  report.warm_up = std::min(warm_up, static_cast<int>(records.size()));
  records.remove_prefix(report.warm_up);
  report.requests = static_cast<int>(records.size());
  std::vector<double> ttft, tpot, itl, e2e, delay;
  std::vector<int> met(slos.size());
  absl::Duration begin = absl::InfiniteDuration(), end = -absl::InfiniteDuration();
  double prompt_tokens = 0, output_tokens = 0;
  for (const RequestRecord& record : records) {
    begin = std::min(begin, record.due);
    end = std::max({end, record.last_token, record.sent});
    delay.push_back(absl::ToDoubleMilliseconds(record.sent - record.due));
    if (!record.status.ok()) {
      ++report.failed;
      ++report.failures[record.status.ToString()];
      continue;
    }
    prompt_tokens += record.prompt_tokens;
    output_tokens += record.output_tokens;
    ttft.push_back(absl::ToDoubleMilliseconds(record.first_token - record.due));
    e2e.push_back(absl::ToDoubleMilliseconds(record.last_token - record.due));
    if (record.output_tokens > 1) tpot.push_back(absl::ToDoubleMilliseconds(MeanGap(record)));
    for (absl::Duration gap : record.gaps) itl.push_back(absl::ToDoubleMilliseconds(gap));
    for (size_t i = 0; i < slos.size(); ++i) met[i] += Meets(record, slos[i]) ? 1 : 0;
  }
  report.ttft = Describe(std::move(ttft));
  report.tpot = Describe(std::move(tpot));
  report.itl = Describe(std::move(itl));
  report.e2e = Describe(std::move(e2e));
  report.send_delay = Describe(std::move(delay));
  if (records.empty() || end <= begin) return report;
  report.seconds = absl::ToDoubleSeconds(end - begin);
  report.requests_per_second = (report.requests - report.failed) / report.seconds;
  report.prompt_tokens_per_second = prompt_tokens / report.seconds;
  report.output_tokens_per_second = output_tokens / report.seconds;
  for (size_t i = 0; i < slos.size(); ++i) report.goodput.emplace_back(slos[i], met[i] / report.seconds);
  return report;
}

std::string DescribeLoad(const LoadReport& report) {
  std::string out = absl::StrFormat("%d requests in %.1f s, %d failed; %d before them to warm up\n", report.requests,
                                    report.seconds, report.failed, report.warm_up);
  for (const auto& [cause, count] : report.failures) absl::StrAppendFormat(&out, "  %d x %s\n", count, cause);
  absl::StrAppendFormat(&out, "%-12s %9s %9s %9s %9s %9s %9s %9s\n", "ms", "mean", "p50", "p90", "p95", "p99", "p99.9",
                        "max");
  for (const auto& [name, member] : kDistributions) {
    const Distribution& values = report.*member;
    absl::StrAppendFormat(&out, "%-12s", name);
    for (const auto& [statistic, value] : kStatistics) absl::StrAppendFormat(&out, " %9.2f", values.*value);
    out += "\n";
  }
  absl::StrAppendFormat(&out, "%.2f requests/s, %.1f prompt tokens/s, %.1f output tokens/s\n",
                        report.requests_per_second, report.prompt_tokens_per_second, report.output_tokens_per_second);
  if (report.workers > 0) {
    absl::StrAppendFormat(&out, "for each of %d workers: %.2f requests/s, %.1f prompt tokens/s, %.1f output tokens/s\n",
                          report.workers, report.requests_per_second / report.workers,
                          report.prompt_tokens_per_second / report.workers,
                          report.output_tokens_per_second / report.workers);
  }
  for (const auto& [slo, rate] : report.goodput) {
    absl::StrAppendFormat(&out, "goodput %.2f requests/s (%s)\n", rate, SloName(slo));
  }
  return out;
}

std::string LoadToJson(const LoadReport& report, const std::vector<std::pair<std::string, std::string>>& context) {
  boost::json::object json;
  boost::json::object& facts = json["context"].emplace_object();
  for (const auto& [name, value] : context) facts[name] = value;
  json["requests"] = report.requests;
  json["failed"] = report.failed;
  json["warm_up"] = report.warm_up;
  json["seconds"] = report.seconds;
  json["workers"] = report.workers;
  boost::json::object failures;
  for (const auto& [cause, count] : report.failures) failures[cause] = count;
  json["failures"] = std::move(failures);
  for (const auto& [name, member] : kDistributions) {
    boost::json::object values;
    values["count"] = (report.*member).count;
    for (const auto& [statistic, value] : kStatistics) values[statistic] = (report.*member).*value;
    json[absl::StrCat(name, "_ms")] = std::move(values);
  }
  boost::json::object throughput;
  for (const auto& [name, member] : kRates) throughput[name] = report.*member;
  json["throughput"] = std::move(throughput);
  boost::json::array goodput;
  for (const auto& [slo, rate] : report.goodput) {
    goodput.push_back({{"ttft_ms", absl::ToDoubleMilliseconds(slo.ttft)},
                       {"tpot_ms", absl::ToDoubleMilliseconds(slo.tpot)},
                       {"requests_per_second", rate}});
  }
  json["goodput"] = std::move(goodput);
  return boost::json::serialize(json) + "\n";
}

absl::StatusOr<LoadComparison> CompareLoads(const std::string& a_name, const std::string& a_json,
                                            const std::string& b_name, const std::string& b_json) {
  ASSIGN_OR_RETURN(const boost::json::object a, ParseReport(a_name, a_json));
  ASSIGN_OR_RETURN(const boost::json::object b, ParseReport(b_name, b_json));
  LoadComparison comparison;
  comparison.table = absl::StrFormat("A: %s\nB: %s\n%-36s %12s %12s %9s\n", a_name, b_name, "", "A", "B", "B / A");
  std::vector<ChartBar> bars;
  for (const auto& [group, name, more_is_better] : kCompared) {
    const double of_a = a.at(group).at(name).to_number<double>(), of_b = b.at(group).at(name).to_number<double>();
    const std::string label = absl::StrCat(group, " ", name);
    if (of_a <= 0 || of_b <= 0) {
      absl::StrAppendFormat(&comparison.table, "%-36s %12.3f %12.3f %9s\n", label, of_a, of_b, "-");
      continue;
    }
    const double ratio = of_b / of_a;
    absl::StrAppendFormat(&comparison.table, "%-36s %12.3f %12.3f %9.3f\n", label, of_a, of_b, ratio);
    bars.push_back({label, ratio, more_is_better == (ratio >= 1)});
  }
  comparison.svg = DrawBars(absl::StrCat("B / A; A: ", a_name, ", B: ", b_name), bars);
  return comparison;
}

}  // namespace tandem
