#include "router/tracing.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Field;

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736", kParent[] = "00f067aa0ba902b7";

TEST(TracingTest, ReadsATraceparent) {
  const TraceContext trace = ParseTraceParent(std::string("00-") + kTrace + "-" + kParent + "-01");
  EXPECT_EQ(trace.trace_id, kTrace);
  EXPECT_EQ(trace.parent_id, kParent);
  EXPECT_TRUE(trace.is_sampled);
  EXPECT_FALSE(ParseTraceParent(std::string("00-") + kTrace + "-" + kParent + "-02").is_sampled);
  EXPECT_TRUE(ParseTraceParent(std::string("cc-") + kTrace + "-" + kParent + "-0b-more").is_sampled);  // Of the future.
}

TEST(TracingTest, WhatIsNoTraceparentIsNotSet) {
  const std::string trace = kTrace, parent = kParent;
  for (const std::string& wrong :
       {std::string(), std::string("00"), "00-" + trace + "-" + parent, "00-" + trace + "-" + parent + "-01-more",
        "ff-" + trace + "-" + parent + "-01", "00-" + std::string(32, '0') + "-" + parent + "-01",
        "00-" + trace + "-" + std::string(16, '0') + "-01", "00-" + trace.substr(1) + "-" + parent + "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + parent + "-01", "00-" + trace + "-" + parent + "-0g"}) {
    EXPECT_FALSE(ParseTraceParent(wrong).is_set()) << wrong;
  }
}

TEST(TracingTest, ATraceparentIsHandedOnAsItCame) {
  for (const char* flags : {"-00", "-01"}) {
    const std::string header = absl::StrCat("00-", kTrace, "-", kParent, flags);
    EXPECT_EQ(TraceParentOf(ParseTraceParent(header)), header);
  }
  EXPECT_EQ(TraceParentOf({}), "");
  EXPECT_EQ(TraceParentOf(NewTrace()), "") << "nobody's child";
}

TEST(TracingTest, ANewTraceIsOneThatCanBeHandedOn) {
  const TraceContext trace = NewTrace();
  EXPECT_TRUE(ParseTraceParent("00-" + trace.trace_id + "-" + kParent + "-01").is_set());
  EXPECT_NE(trace.trace_id, NewTrace().trace_id);
}

TEST(TracingTest, EachStageIsASpanWithinTheCall) {
  const absl::Time arrival = absl::UnixEpoch() + absl::Seconds(100), end = arrival + absl::Milliseconds(100);
  Request request{.name = "r", .arrival = arrival};
  RequestUsage usage{.prompt_tokens = 5, .completion_tokens = 7, .prefill_worker = "p", .decode_worker = "d"};
  usage.stages = {.queue = absl::Milliseconds(10),
                  .prefill = absl::Milliseconds(20),
                  .transfer = absl::Milliseconds(15),
                  .handover = absl::Milliseconds(5),
                  .decode = absl::Milliseconds(65)};
  const TraceContext trace{kTrace, kParent, true};
  const std::vector<Span> spans = SpansOf(request, trace, absl::OkStatus(), usage, end, absl::Hours(1));
  std::vector<std::string> lines;
  for (const Span& span : spans) {
    const auto at = [&](absl::Time time) {
      return std::to_string(absl::ToInt64Milliseconds(time - arrival - absl::Hours(1)));
    };
    lines.push_back(span.name + " " + at(span.start) + " " + at(span.end));
  }
  EXPECT_THAT(lines, ElementsAre("tandem.request 0 100", "queue 0 10", "prefill 10 30", "transfer 20 35",
                                 "handover 30 35", "decode 35 100"));
  EXPECT_THAT(spans, Each(Field(&Span::trace_id, kTrace)));
  EXPECT_EQ(spans[0].parent_id, kParent);
  for (size_t i = 1; i < spans.size(); ++i) EXPECT_EQ(spans[i].parent_id, spans[0].span_id);
}

TEST(TracingTest, StagesThatDidNotHappenHaveNoSpan) {
  Request request{.name = "r", .arrival = absl::UnixEpoch()};
  EXPECT_EQ(SpansOf(request, NewTrace(), absl::CancelledError("gone"), {}, absl::UnixEpoch(), {}).size(), 1);
}

}  // namespace
}  // namespace tandem
