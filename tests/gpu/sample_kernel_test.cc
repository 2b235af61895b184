// Tokens that the device chooses against the probabilities of the host.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "engine/cuda/sample_kernel.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_values.h"

namespace tandem {
namespace {

using SampleKernelTest = CudaKernelsTest;

TEST_F(SampleKernelTest, OnlyAllowedTokensAreChosen) {
  const int rows = 5;
  for (int columns : {1000, 1003}) {
    const int mask_words = (columns + 31) / 32;
    std::vector<float> logits(size_t(columns) * rows);
    std::normal_distribution<float> normal(0, 3);
    for (float& value : logits) value = normal(random_);
    logits[4 * columns + 17] = NAN;
    // Rows 1, 3 and 4: one token in 50, in row 3 one alone.
    const std::vector<int32_t> masked_rows = {1, 3, 4};
    std::vector<uint32_t> masks(size_t(mask_words) * 3);
    const auto allow = [&](int mask, int token) { masks[mask * mask_words + token / 32] |= 1u << (token % 32); };
    for (int token = 7; token < columns; token += 50) allow(0, token), allow(2, token);
    allow(1, columns - 1);
    Both<float> device_logits(logits);
    Both<int32_t> device_rows(masked_rows), tokens(std::vector<int32_t>(rows, -7)),
        results(std::vector<int32_t>(rows, -7));
    Both<uint32_t> device_masks(masks);
    Check(LaunchMask(device_logits.device(), columns, device_rows.device(), device_masks.device(), mask_words, 3,
                     nullptr));
    int best = 7;
    for (int token = 7; token < columns; token += 50) {
      if (logits[columns + token] > logits[columns + best]) best = token;
    }
    const std::vector<SampleSettings> ways = {{},
                                              {.temperature = 2},
                                              {.temperature = 1, .top_k = 100},
                                              {.temperature = 1, .top_p = 0.9f},
                                              {.temperature = 1, .min_p = 0.05f}};
    for (const SampleSettings& way : ways) {
      for (int draw = 0; draw < 200; ++draw) {
        std::vector<SampleSettings> settings(rows, way);
        for (SampleSettings& s : settings) s.seed = 3, s.index = draw;
        Both<SampleSettings> device_settings(settings);
        Check(LaunchSample(device_logits.device(), rows, columns, device_settings.device(), tokens.device(),
                           results.device(), nullptr));
        Finish();
        const std::vector<int32_t> got = results.Read();
        ASSERT_EQ(got[1] % 50, 7);
        if (way.temperature == 0) {
          ASSERT_EQ(got[1], best);
        }
        ASSERT_EQ(got[3], columns - 1);
        ASSERT_EQ(got[4], -1) << "what is no number stays none";
      }
    }
    const std::vector<float> after = device_logits.Read();
    for (int row : {0, 2}) {
      EXPECT_TRUE(std::equal(after.begin() + row * columns, after.begin() + (row + 1) * columns,
                             logits.begin() + row * columns));
    }
  }
}

TEST_F(SampleKernelTest, SamplingFiltersAndDrawsAsTheSettingsSay) {
  const int columns = 1000, rows = 6;
  std::vector<float> logits(size_t(columns) * rows);
  std::normal_distribution<float> normal(0, 2);
  for (float& value : logits) value = normal(random_);
  logits[3 * columns + 17] = NAN;
  Both<float> device_logits(logits);
  Both<int32_t> tokens(std::vector<int32_t>(rows, -7)), results(std::vector<int32_t>(rows, -7));
  std::vector<std::vector<int>> counts(rows, std::vector<int>(columns));
  const int draws = 4000;
  for (int draw = 0; draw < draws; ++draw) {
    std::vector<SampleSettings> settings(rows);
    settings[1] = {.temperature = 1.3f, .top_k = 20};
    settings[2] = {.temperature = 0.8f, .top_p = 0.7f};
    settings[3] = {.temperature = 1};
    settings[4] = {.temperature = 1.1f, .min_p = 0.2f};
    settings[5] = {.temperature = 1.0f, .top_p = 0.9f, .top_k = 30};
    for (SampleSettings& s : settings) s.seed = 99, s.index = draw;
    Both<SampleSettings> device_settings(settings);
    Check(LaunchSample(device_logits.device(), rows, columns, device_settings.device(), tokens.device(),
                       results.device(), nullptr));
    Finish();
    const std::vector<int32_t> got = results.Read();
    EXPECT_EQ(got[3], -1);
    for (int row = 0; row < rows; ++row) {
      if (row != 3) ++counts[row][got[row]];
    }
  }
  // Frequencies against the probabilities of the filtered distribution.
  for (int row : {0, 1, 2, 4, 5}) {
    std::vector<int> order(columns);
    std::iota(order.begin(), order.end(), 0);
    const float* values = logits.data() + size_t(row) * columns;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
    const double temperature = row == 1 ? 1.3 : row == 2 ? 0.8 : row == 4 ? 1.1 : 1.0;
    size_t keep = row == 0 ? 1 : row == 1 ? 20 : row == 5 ? 30 : columns;
    std::vector<double> weights;
    for (size_t i = 0; i < keep; ++i) weights.push_back(std::exp((values[order[i]] - values[order[0]]) / temperature));
    const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
    const double top_p = row == 2 ? 0.7 : row == 5 ? 0.9 : 2;
    double kept = 0;
    size_t count = 0;
    while (count < weights.size() && (row != 4 || weights[count] >= 0.2)) {
      kept += weights[count++];
      if (kept >= top_p * all) break;
    }
    int inside = 0;
    double distance = 0;
    for (size_t i = 0; i < count; ++i) {
      inside += counts[row][order[i]];
      distance += std::abs(counts[row][order[i]] / double(draws) - weights[i] / kept) / 2;
    }
    EXPECT_EQ(inside, draws) << "row " << row;
    EXPECT_LT(distance, 0.08) << "row " << row << ", " << count << " candidates";
  }
}

}  // namespace
}  // namespace tandem
