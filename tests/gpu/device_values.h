#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/gpu/gpu_presence.h"

namespace tandem {

using Bf16 = __nv_bfloat16;

inline void Check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Values on the host and on device 0.
template <typename T>
class Both {
 public:
  explicit Both(std::vector<T> values) : host(std::move(values)) {
    EXPECT_EQ(cudaMalloc(&device_, host.size() * sizeof(T) + 16), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(device_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  Both(const Both&) = delete;
  ~Both() { cudaFree(device_); }
  T* device() { return static_cast<T*>(device_); }
  // What the device has now.
  std::vector<T> Read() {
    std::vector<T> values(host.size());
    EXPECT_EQ(cudaMemcpy(values.data(), device_, host.size() * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  std::vector<T> host;

 private:
  void* device_ = nullptr;
};

inline double Value(Bf16 value) { return static_cast<double>(__bfloat162float(value)); }
inline double Value(float value) { return value; }

inline std::vector<Bf16> RandomBf16(size_t count, float scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<Bf16> values(count);
  for (Bf16& value : values) value = __float2bfloat16(normal(random));
  return values;
}

class CudaKernelsTest : public testing::Test {
 protected:
  void SetUp() override {
    TANDEM_NEEDS_GPU(gpus);
    Check(cudaSetDevice(0));
    cudaDeviceProp properties;
    Check(cudaGetDeviceProperties(&properties, 0));
    multiprocessors_ = properties.multiProcessorCount;
    compute_major_ = properties.major;
    if (compute_major_ < 9) GTEST_SKIP() << "the kernels are for compute capability 9.0 and newer";
  }
  std::vector<Bf16> Random(size_t count, float scale = 1) { return RandomBf16(count, scale, random_); }
  // All that was enqueued is over, well.
  void Finish() {
    Check(cudaGetLastError());
    Check(cudaDeviceSynchronize());
  }
  int multiprocessors_ = 0, compute_major_ = 0;
  std::mt19937 random_{7};
};

// `tolerance`: in units of the root mean square of `wanted`.
template <typename T>
void ExpectNear(const std::vector<T>& got, const std::vector<double>& wanted, double tolerance,
                const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size());
  double squares = 0, worst = 0;
  size_t worst_at = 0;
  for (double value : wanted) squares += value * value;
  const double scale = std::sqrt(squares / static_cast<double>(wanted.size())) + 1e-30;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double off = std::abs(Value(got[i]) - wanted[i]) / (scale + std::abs(wanted[i]));
    if (!(off <= worst)) worst = off, worst_at = i;
    if (std::isnan(worst)) break;
  }
  EXPECT_LE(worst, tolerance) << what << ": at " << worst_at << " got " << Value(got[worst_at]) << ", wanted "
                              << wanted[worst_at];
}

}  // namespace tandem
