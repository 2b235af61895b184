#pragma once

#include <gmock/gmock.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// EXPECT_THAT(status, IsOk()), StatusIs(code), StatusIs(code, HasSubstr(text)),
// IsOkAndHolds(matcher), and ASSERT_OK_AND_ASSIGN(declaration, expression). Debian's abseil has
// none of them.

namespace tandem {

inline const absl::Status& ToStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& ToStatus(const absl::StatusOr<T>& result) {
  return result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << ToStatus(arg).ToString();
  return arg.ok();
}

MATCHER_P(HasStatusCode, code, "") {
  *result_listener << ToStatus(arg).ToString();
  return ToStatus(arg).code() == code;
}

MATCHER_P2(StatusIsImpl, code, message_matcher, "") {
  *result_listener << ToStatus(arg).ToString();
  return ToStatus(arg).code() == code && ::testing::Matches(message_matcher)(std::string(ToStatus(arg).message()));
}

inline auto StatusIs(absl::StatusCode code) { return HasStatusCode(code); }
template <typename M>
auto StatusIs(absl::StatusCode code, M message_matcher) {
  return StatusIsImpl(code, ::testing::Matcher<std::string>(message_matcher));
}

MATCHER_P(IsOkAndHolds, value_matcher, "") {
  if (!arg.ok()) {
    *result_listener << arg.status().ToString();
    return false;
  }
  return ::testing::ExplainMatchResult(value_matcher, *arg, result_listener);
}

}  // namespace tandem

#define TANDEM_TEST_CONCAT_INNER(a, b) a##b
#define TANDEM_TEST_CONCAT(a, b) TANDEM_TEST_CONCAT_INNER(a, b)
#define ASSERT_OK_AND_ASSIGN(declaration, expression) \
  ASSERT_OK_AND_ASSIGN_INNER(TANDEM_TEST_CONCAT(result_, __LINE__), declaration, expression)
#define ASSERT_OK_AND_ASSIGN_INNER(result, declaration, expression) \
  auto result = (expression);                                       \
  ASSERT_TRUE(result.ok()) << result.status();                      \
  declaration = *std::move(result)
