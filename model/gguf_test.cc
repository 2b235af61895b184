#include "model/gguf.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/golden_file.h"
#include "tests/support/status_matchers.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(GgufTest, ReadsMetadataAndTensors) {
  GgufWriter writer(1, 3);
  writer.AddIntKey("a.count", 7).AddTextKey("a.name", "x");
  writer.AddIntsKey("a.list", {-1, 2});
  writer.AddTensor("w", {4, 2}, 0, 0).Pad(32);
  ASSERT_OK_AND_ASSIGN(auto gguf, writer.Parse());
  EXPECT_THAT(gguf->GetInt("a.count"), IsOkAndHolds(7));
  EXPECT_THAT(gguf->GetString("a.name"), IsOkAndHolds("x"));
  EXPECT_THAT(gguf->GetInts("a.list"), IsOkAndHolds(ElementsAre(-1, 2)));
  ASSERT_EQ(gguf->tensors().size(), 1);
  EXPECT_THAT(gguf->tensors()[0].shape, ElementsAre(2, 4));
  EXPECT_EQ(gguf->tensors()[0].data.size(), 32);
}

TEST(GgufTest, MissingAndMistypedKeysAreNamed) {
  GgufWriter writer(0, 1);
  writer.AddIntKey("n", 1);
  ASSERT_OK_AND_ASSIGN(auto gguf, writer.Parse());
  EXPECT_THAT(gguf->GetInt("m"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("m is missing")));
  EXPECT_THAT(gguf->GetString("n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("n is no text")));
}

TEST(GgufTest, RefusesOtherFiles) {
  EXPECT_THAT(GgufFile::Parse({}), StatusIs(absl::StatusCode::kOutOfRange));
  std::string text = "this is a text file, not a model";
  EXPECT_THAT(GgufFile::Parse({reinterpret_cast<const uint8_t*>(text.data()), text.size()}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a GGUF file")));
  EXPECT_THAT(GgufWriter(0, 0, /*version=*/1).Parse(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version 1")));
}

TEST(GgufTest, RefusesCountsThatTheFileCannotHold) {
  EXPECT_THAT(GgufWriter(uint64_t{1} << 60, 0).Parse(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("claims")));
  EXPECT_THAT(GgufWriter(0, uint64_t{1} << 60).Parse(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("claims")));
}

TEST(GgufTest, RefusesStringsPastTheEnd) {
  GgufWriter writer(0, 1);
  writer.Add(~uint64_t{0});
  EXPECT_THAT(writer.Parse(), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("metadata key needs")));
}

TEST(GgufTest, RefusesArraysPastTheEnd) {
  GgufWriter writer(0, 1);
  writer.AddText("a").Add(uint32_t{9}).Add(uint32_t{4}).Add(uint64_t{1} << 40);
  EXPECT_THAT(writer.Parse(), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("claims")));
}

TEST(GgufTest, RefusesNestedArraysAndUnknownTypes) {
  GgufWriter nested(0, 1);
  nested.AddText("a").Add(uint32_t{9}).Add(uint32_t{9}).Add(uint64_t{1}).Add(uint64_t{0});
  EXPECT_THAT(nested.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("arrays of type 9")));
  GgufWriter unknown(0, 1);
  unknown.AddText("a").Add(uint32_t{77});
  EXPECT_THAT(unknown.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unknown value type 77")));
}

TEST(GgufTest, RefusesRepeatedKeysAndTensors) {
  GgufWriter keys(0, 2);
  keys.AddIntKey("n", 1).AddIntKey("n", 2);
  EXPECT_THAT(keys.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("n stands twice")));
  GgufWriter tensors(2, 0);
  tensors.AddTensor("w", {8}, 0, 0).AddTensor("w", {8}, 0, 0).Pad(32);
  EXPECT_THAT(tensors.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("w stands twice")));
}

TEST(GgufTest, RefusesTensorsOutsideOfTheFile) {
  for (uint64_t offset : {uint64_t{32}, uint64_t{1} << 63, ~uint64_t{31}}) {
    GgufWriter writer(1, 0);
    writer.AddTensor("w", {8}, 0, offset).Pad(32);
    EXPECT_THAT(writer.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tensor w claims 32 bytes")));
  }
  GgufWriter crooked(1, 0);
  crooked.AddTensor("w", {1}, 0, 4).Pad(32);
  EXPECT_THAT(crooked.Parse(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(GgufTest, RefusesImpossibleShapes) {
  for (std::vector<uint64_t> dims : {std::vector<uint64_t>{0}, {uint64_t{1} << 62, 16}, {~uint64_t{0}}, {}}) {
    GgufWriter writer(1, 0);
    writer.AddTensor("w", dims, 0, 0).Pad(64);
    EXPECT_FALSE(writer.Parse().ok());
  }
  GgufWriter partial(1, 0);
  partial.AddTensor("w", {33}, 2, 0).Pad(64);
  EXPECT_THAT(partial.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("multiple of the 32")));
}

TEST(GgufTest, RefusesUnknownTensorTypes) {
  GgufWriter writer(1, 0);
  writer.AddTensor("w", {32}, 99, 0).Pad(64);
  EXPECT_THAT(writer.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ggml type 99")));
}

TEST(GgufTest, RefusesAStrangeAlignment) {
  GgufWriter writer(0, 1);
  writer.AddIntKey("general.alignment", 24);
  EXPECT_THAT(writer.Parse(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("power of two")));
}

TEST(GgufTest, NoPrefixOfAFileIsAccepted) {
  GgufWriter writer(1, 1);
  writer.AddIntKey("n", 1).AddTensor("w", {8}, 0, 0).Pad(32);
  ASSERT_THAT(writer.Parse(), IsOk());
  for (size_t size = 0; size < writer.bytes_.size(); ++size) {
    EXPECT_FALSE(GgufFile::Parse({reinterpret_cast<const uint8_t*>(writer.bytes_.data()), size}).ok()) << size;
  }
}

TEST(GgufTest, RandomDamageNeverCrashes) {
  GgufWriter writer(1, 2);
  writer.AddIntKey("n", 1).AddText("s").Add(uint32_t{8}).AddText("text").AddTensor("w", {8}, 0, 0).Pad(32);
  std::mt19937 random(3);
  for (int round = 0; round < 5000; ++round) {
    std::string damaged = writer.bytes_;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    GgufFile::Parse({reinterpret_cast<const uint8_t*>(damaged.data()), damaged.size()}).status().IgnoreError();
  }
}

TEST(GgufTest, OpensTheRealModel) {
  ASSERT_OK_AND_ASSIGN(auto gguf, GgufFile::Open(SmolLm2Path()));
  EXPECT_THAT(gguf->GetString("general.architecture"), IsOkAndHolds("llama"));
  EXPECT_EQ(gguf->tensors().size(), 272);
  EXPECT_THAT(GgufFile::Open("/no/such/file"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such/file")));
}

}  // namespace
}  // namespace tandem
