#include "common/process_needs.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

TEST(ProcessNeedsTest, ComeBackFromText) {
  const ProcessNeeds needs{1 << 20, int64_t{1} << 40, 3, 4};
  EXPECT_THAT(ParseNeeds(FormatNeeds(needs)), IsOkAndHolds(needs));
}

TEST(ProcessNeedsTest, RefusesAllElse) {
  for (const char* line : {"", "kv_pages=3", "weight_bytes=1 kv_bytes=2 kv_pages=3",
                           "weight_bytes=1 kv_bytes=2 kv_pages=3 max_context_tokens=x",
                           "weight_bytes=1 kv_bytes=2 kv_pages=3 max_context_tokens=4 more=5",
                           "weight_bytes=1 weight_bytes=1 kv_bytes=2 kv_pages=3 max_context_tokens=4"}) {
    SCOPED_TRACE(line);
    EXPECT_THAT(ParseNeeds(line).status(), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace tandem
