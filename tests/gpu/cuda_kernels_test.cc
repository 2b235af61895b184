// The kernels of engine/cuda against sums in double precision on the host, on random data.

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "engine/cuda/gated_linear.h"
#include "engine/cuda/moe_kernels.h"
#include "engine/cuda/paired_linear.h"
#include "engine/cuda/skinny_linear.h"
#include "engine/cuda/streamed_linear.h"
#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/linear_reference.h"

namespace tandem {
namespace {

// Needs no device: a block's shared memory holds the input of few rows, and what it does not hold goes to cuBLAS.
TEST(SkinnyLinearTest, TakesWhatFitsInAMultiprocessor) {
  const Bf16 norm[1] = {};
  const auto is_skinny = [&](int rows, int in, bool gated) {
    SkinnyLinearArguments a;
    a.norm = norm;
    a.is_gated = gated;
    a.rows = rows, a.in_features = in, a.out_features = 4096;
    return IsSkinny(a);
  };
  EXPECT_TRUE(is_skinny(16, 4096, true));
  EXPECT_TRUE(is_skinny(8, 8192, true));
  // With the sums of a gated tile these are over the 227 KB that a block may have.
  for (const auto& [rows, in] : {std::pair{16, 6144}, {15, 6656}, {14, 7168}, {12, 8192}}) {
    EXPECT_FALSE(is_skinny(rows, in, true)) << rows << " rows of " << in;
  }
  EXPECT_FALSE(is_skinny(17, 512, false));
  EXPECT_FALSE(is_skinny(1, 500, false));
}

// Needs no device.
TEST(ExpectNearTest, SeesWhatIsOffOrNoNumber) {
  const std::vector<double> wanted = {1, 2, 3};
  ExpectNear(std::vector<float>{1, 2.001f, 3}, wanted, 0.01, "near");
  EXPECT_NONFATAL_FAILURE(ExpectNear(std::vector<float>{1, 2.2f, 3}, {1, 2, 3}, 0.01, "far"), "at 1 got 2.2");
  EXPECT_NONFATAL_FAILURE(ExpectNear(std::vector<float>{1, NAN, 3}, {1, 2, 3}, 0.01, "none"), "at 1 got nan");
}

class LinearTest : public CudaKernelsTest {
 protected:
  void ExpectThatOfTheHost(const LinearCase& c, bool is_streamed);
};

void LinearTest::ExpectThatOfTheHost(const LinearCase& c, bool is_streamed) {
  SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
  Both<Bf16> weight(Random(size_t(c.out) * c.in, 1 / std::sqrt(float(c.in))));
  LinearValues values(c, 1, 1, random_);
  SkinnyLinearArguments a = values.Arguments(c);
  a.weight = weight.device();
  if (is_streamed) {
    ASSERT_TRUE(IsStreamed(a, compute_major_));
    Check(LaunchStreamedLinear(a, multiprocessors_, nullptr));
  } else {
    ASSERT_TRUE(IsSkinny(a));
    Check(LaunchSkinnyLinear(a, multiprocessors_, nullptr));
  }
  Finish();
  std::vector<double> weights;
  for (Bf16 value : weight.host) weights.push_back(Value(value));
  values.Expect(c, weights);
}

TEST_F(LinearTest, SkinnyIsThatOfTheHost) {
  std::vector<LinearCase> cases;
  for (int rows : {1, 2, 3, 7, 8, 9, 13, 16}) {
    cases.push_back({rows, 512, 256, true, false, false, false, false});
    cases.push_back({rows, 96, 304, false, false, false, false, true});
    cases.push_back({rows, 1024, 4096, true, true, false, false, false});
    cases.push_back({rows, 14336, 128, false, false, true, false, false});
    cases.push_back({rows, 224, 96, false, false, true, true, false});
    cases.push_back({rows, 576, 2112, true, false, false, true, false});
    cases.push_back({rows, 4096, 6144, true, false, false, false, false});
  }
  for (const LinearCase& c : cases) ExpectThatOfTheHost(c, /*is_streamed=*/false);
}

TEST_F(LinearTest, StreamedIsThatOfTheHost) {
  if (compute_major_ != 9) GTEST_SKIP() << "the kernel is for Hopper";
  std::vector<LinearCase> cases;
  for (int rows : {1, 7, 8, 9, 16, 17, 25, 32}) {
    cases.push_back({rows, 512, 256, false, false, false, false, false});
    cases.push_back({rows, 104, 312, false, false, false, true, true});  // No part is whole.
    cases.push_back({rows, 1024, 4096, false, true, false, false, false});
    cases.push_back({rows, 200, 1234 * 2, false, true, false, false, false});
    cases.push_back({rows, 14336, 128, false, false, true, false, false});  // The ring goes round often.
    cases.push_back({rows, 224, 17, false, false, true, true, false});
    cases.push_back({rows, 64, 33000, false, false, false, false, true});  // Several tiles for each block.
    cases.push_back({rows, 4096, 768, false, false, false, false, false});
  }
  for (const LinearCase& c : cases) ExpectThatOfTheHost(c, /*is_streamed=*/true);
}

TEST_F(LinearTest, GatedIsThatOfTheHost) {
  if (compute_major_ != 9) GTEST_SKIP() << "the kernel is for Hopper";
  const std::vector<LinearCase> cases = {
      {.rows = 1, .in = 64, .out = 256, .gated = true},
      {.rows = 300, .in = 512, .out = 768, .gated = true},
      {.rows = 77, .in = 200, .out = 1232, .gated = true},  // No tile is whole: the gate's last runs into what it
                                                            // opens.
      {.rows = 600, .in = 2048, .out = 272, .gated = true},
      {.rows = 2600, .in = 72, .out = 1024, .gated = true},
      {.rows = 5000, .in = 64, .out = 2048, .gated = true}};  // Several tiles for each block.
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    Both<Bf16> weight(Random(size_t(c.out) * c.in, 1 / std::sqrt(float(c.in))));
    LinearValues values(c, 1, 1, random_);
    Check(LaunchGatedLinear({.weight = weight.device(),
                             .in = values.in.device(),
                             .out = values.out.device(),
                             .rows = c.rows,
                             .columns = c.columns(),
                             .in_features = c.in},
                            multiprocessors_, nullptr));
    Finish();
    std::vector<double> weights;
    for (Bf16 value : weight.host) weights.push_back(Value(value));
    values.Expect(c, weights);
  }
}

TEST_F(LinearTest, PairedIsThatOfTheHost) {
  if (compute_major_ != 9) GTEST_SKIP() << "the kernel is for Hopper";
  std::vector<LinearCase> cases;
  for (int rows : {33, 48, 64, 65, 100, 128}) {
    cases.push_back({rows, 512, 256, false, false, false, false, false});
    cases.push_back({rows, 104, 312, false, false, false, true, true});  // No tile is whole.
    cases.push_back({rows, 1024, 1024, false, false, true, true, false});
    // Halves of the input features meet.
    cases.push_back({rows, 4096, 768, false, false, true, false, false});
    cases.push_back({rows, 4096, 768, false, false, true, true, false});
    cases.push_back({rows, 4096, 128, false, false, false, true, true});
    cases.push_back({rows, 2056, 3000, false, false, true, false, false});
    cases.push_back({rows, 64, 33000, false, false, false, false, true});  // Several tiles for each block.
    for (int out : {1984, 4096, 6144}) cases.push_back({rows, 128, out, false, true, false, false, false});
    cases.push_back({rows, 200, 2000, false, true, false, false, false});
    cases.push_back({rows, 72, 40016, false, true, false, false, false});
  }
  Both<float> partial{std::vector<float>(PairedPartialFloats(multiprocessors_))};
  Both<uint32_t> arrived{std::vector<uint32_t>(PairedArrived(multiprocessors_))};
  for (const LinearCase& c : cases) {
    SCOPED_TRACE(testing::Message() << "rows " << c.rows << " in " << c.in << " out " << c.out);
    Both<Bf16> weight(Random(size_t(c.out) * c.in, 1 / std::sqrt(float(c.in))));
    LinearValues values(c, 1, 1, random_);
    SkinnyLinearArguments a = values.Arguments(c);
    a.weight = weight.device();
    // Behind the rows there is room that nobody has written to.
    std::vector<Bf16> with_room = values.in.host;
    with_room.resize(size_t(kMaxPairedRows) * c.in, __float2bfloat16(NAN));
    Both<Bf16> in(with_room);
    a.in = in.device();
    ASSERT_TRUE(IsPaired(a, compute_major_));
    Check(LaunchPairedLinear(a, {partial.device(), arrived.device()}, multiprocessors_, nullptr));
    Finish();
    std::vector<double> weights;
    for (Bf16 value : weight.host) weights.push_back(Value(value));
    values.Expect(c, weights);
    if (HasFailure()) return;
  }
  EXPECT_EQ(arrived.Read(), arrived.host);  // Zeros again.
}

TEST_F(CudaKernelsTest, ExpertsAreThoseOfTheHost) {
  const int rows = 5, hidden = 96, width = 40, experts = 12, chosen = 3;
  Both<Bf16> in(Random(rows * hidden)), out(Random(rows * hidden));
  std::vector<std::unique_ptr<Both<Bf16>>> gate_up, down;
  std::vector<const Bf16*> gate_up_pointers, down_pointers;
  for (int e = 0; e < experts; ++e) {
    gate_up.push_back(std::make_unique<Both<Bf16>>(Random(2 * width * hidden, 0.1f)));
    down.push_back(std::make_unique<Both<Bf16>>(Random(hidden * width, 0.1f)));
    gate_up_pointers.push_back(gate_up.back()->device());
    down_pointers.push_back(down.back()->device());
  }
  std::vector<float> logits;
  std::normal_distribution<float> normal(0, 1);
  for (int i = 0; i < rows * experts; ++i) logits.push_back(normal(random_));
  Both<float> router(logits), weights(std::vector<float>(rows * chosen));
  Both<const Bf16*> gate_up_table(gate_up_pointers), down_table(down_pointers);
  Both<int32_t> choices(std::vector<int32_t>(rows * chosen));
  Both<Bf16> activated(std::vector<Bf16>(rows * chosen * width));
  MoeArguments a;
  a.in = in.device();
  a.router_logits = router.device();
  a.gate_up = gate_up_table.device();
  a.down = down_table.device();
  a.rows = rows, a.hidden = hidden, a.width = width, a.num_experts = experts, a.experts_per_token = chosen;
  a.normalise_top_k = true;
  a.chosen = choices.device();
  a.weights = weights.device();
  a.activated = activated.device();
  a.out = out.device();
  Check(LaunchMoe(a, nullptr));
  Finish();
  std::vector<double> wanted;
  for (int row = 0; row < rows; ++row) {
    std::vector<int> order(experts);
    std::iota(order.begin(), order.end(), 0);
    const float* values = logits.data() + row * experts;
    std::sort(order.begin(), order.end(), [&](int x, int y) { return values[x] > values[y]; });
    double sum = 0;
    for (int k = 0; k < chosen; ++k) sum += std::exp(values[order[k]]);
    std::vector<double> total(hidden);
    for (int c = 0; c < hidden; ++c) total[c] = Value(out.host[row * hidden + c]);
    for (int k = 0; k < chosen; ++k) {
      const int e = order[k];
      std::vector<double> h(width);
      for (int i = 0; i < width; ++i) {
        double gate = 0, up = 0;
        for (int c = 0; c < hidden; ++c) {
          gate += Value(gate_up[e]->host[i * hidden + c]) * Value(in.host[row * hidden + c]);
          up += Value(gate_up[e]->host[(width + i) * hidden + c]) * Value(in.host[row * hidden + c]);
        }
        h[i] = Value(__float2bfloat16(float(gate / (1 + std::exp(-gate)) * up)));
      }
      for (int c = 0; c < hidden; ++c) {
        double dot = 0;
        for (int i = 0; i < width; ++i) dot += h[i] * Value(down[e]->host[c * width + i]);
        total[c] += std::exp(values[e]) / sum * dot;
      }
    }
    wanted.insert(wanted.end(), total.begin(), total.end());
  }
  ExpectNear(out.Read(), wanted, 0.01, "out");
}

}  // namespace
}  // namespace tandem
