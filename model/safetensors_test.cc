#include "model/safetensors.h"

#include <cstring>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

std::string File(const std::string& header, size_t data_bytes) {
  uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
  return bytes + header + std::string(data_bytes, '\0');
}

absl::StatusOr<std::vector<TensorView>> Parse(const std::string& bytes) {
  return SafetensorsFile::Parse({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

TEST(SafetensorsTest, ReadsTensors) {
  std::string bytes = File(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})",
      32);
  ASSERT_OK_AND_ASSIGN(auto tensors, Parse(bytes));
  ASSERT_EQ(tensors.size(), 2);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].columns(), 3);
  EXPECT_EQ(tensors[1].dtype, DType::kBF16);
}

struct BadHeader {
  const char* name;
  const char* header;
  const char* message;
};

class SafetensorsRefuses : public testing::TestWithParam<BadHeader> {};

TEST_P(SafetensorsRefuses, AndSaysWhy) {
  EXPECT_THAT(Parse(File(GetParam().header, 16)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Headers, SafetensorsRefuses,
    testing::Values(
        BadHeader{"NotJson", "{", "no JSON object"}, BadHeader{"NotAnObject", "[1]", "no JSON object"},
        BadHeader{"EntryNotAnObject", R"({"a":1})", "tensor a: its entry is no JSON object"},
        BadHeader{"NoDtype", R"({"a":{"shape":[4],"data_offsets":[0,16]}})", "has no dtype"},
        BadHeader{"UnknownDtype", R"({"a":{"dtype":"F7","shape":[4],"data_offsets":[0,16]}})", "unknown dtype F7"},
        BadHeader{"NegativeShape", R"({"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}})", "numbers from 0"},
        BadHeader{"OffsetsPastTheEnd", R"({"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}})",
                  "leave the 16 data bytes"},
        BadHeader{"OffsetsReversed", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}})", "leave"},
        BadHeader{"ShapeAndOffsetsDiffer", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}})",
                  "needs 12 bytes"},
        BadHeader{"HugeShape", R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}})",
                  "impossible shape"},
        BadHeader{
            "Overlap",
            R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
            "overlap"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SafetensorsTest, RefusesAHeaderPastTheEnd) {
  EXPECT_THAT(Parse(File("{}", 0).substr(0, 9)), StatusIs(absl::StatusCode::kOutOfRange));
  std::string bytes(8, '\xFF');
  EXPECT_THAT(Parse(bytes), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is over")));
}

TEST(SafetensorsTest, RandomDamageNeverCrashes) {
  std::string good = File(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", 16);
  std::mt19937 random(5);
  for (int round = 0; round < 5000; ++round) {
    std::string damaged = good;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    Parse(damaged).status().IgnoreError();
  }
}

TEST(SafetensorsTest, OpensACheckpoint) {
  ASSERT_OK_AND_ASSIGN(auto file, SafetensorsFile::Open(SourcePath("tests/golden/tiny/llama3_f32/model.safetensors")));
  EXPECT_GT(file->tensors().size(), 10);
}

}  // namespace
}  // namespace tandem
