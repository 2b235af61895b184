#include "common/units.h"

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

TEST(UnitsTest, ParsesBytes) {
  EXPECT_THAT(ParseBytes("512 B"), IsOkAndHolds(512));
  EXPECT_THAT(ParseBytes("1.5KiB"), IsOkAndHolds(1536));
  EXPECT_THAT(ParseBytes(" 2 GiB "), IsOkAndHolds(int64_t{2} << 30));
  EXPECT_THAT(ParseBytes("1 TiB"), IsOkAndHolds(int64_t{1} << 40));
}

TEST(UnitsTest, RefusesBytesWithoutOrWithOtherUnits) {
  for (const char* text : {"", "12", "MiB", "1 MB", "-1 KiB", "nan B", "1e30 TiB", "1 kib"}) {
    EXPECT_THAT(ParseBytes(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

TEST(UnitsTest, ParsesDurations) {
  EXPECT_THAT(ParseDurationSetting("250ms"), IsOkAndHolds(absl::Milliseconds(250)));
  EXPECT_THAT(ParseDurationSetting("1.5s"), IsOkAndHolds(absl::Milliseconds(1500)));
  for (const char* text : {"", "5", "-1s", "soon"}) {
    EXPECT_THAT(ParseDurationSetting(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

TEST(UnitsTest, FormatsBytes) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(int64_t{3} << 30), "3 GiB");
}

TEST(UnitsTest, RatesNeedADecimalUnit) {
  EXPECT_THAT(ParseRate("12 GB/s"), IsOkAndHolds(12e9));
  EXPECT_THAT(ParseRate("0.5MB/s"), IsOkAndHolds(0.5e6));
  for (const char* text : {"12", "12 GiB/s", "12 GB", "-1 GB/s", "fast", "", "nan GB/s", "1e30 GB/s"}) {
    EXPECT_THAT(ParseRate(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace tandem
