#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "engine/cuda/cuda_check.h"
#include "engine/cuda/device_memory.h"

// What benchmarks of kernels share: memory of the device, which ends the program where there is not enough.

namespace tandem {

using Bf16 = __nv_bfloat16;

inline DeviceMemory Allocate(size_t bytes) {
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes);
  if (!memory.ok()) {
    fprintf(stderr, "%s\n", memory.status().ToString().c_str());
    exit(1);
  }
  return *std::move(memory);
}

template <typename T>
DeviceMemory CopyOf(const std::vector<T>& values) {
  DeviceMemory memory = Allocate(values.size() * sizeof(T));
  CheckCuda(cudaMemcpy(memory.as<void>(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
            "cudaMemcpy");
  return memory;
}

// Values of about 1 / 50, so that products draw power.
inline DeviceMemory RandomBf16(int64_t count) {
  DeviceMemory memory = Allocate(count * 2);
  std::vector<uint16_t> values(std::min<int64_t>(count, 1 << 22));
  uint32_t state = 1;
  for (uint16_t& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<uint16_t>((state >> 16 & 0x8000) | (0x3c00 + (state >> 20 & 0xff)));
  }
  const auto size = static_cast<int64_t>(values.size());
  CheckCuda(cudaMemcpy(memory.as<void>(), values.data(), size * 2, cudaMemcpyHostToDevice), "cudaMemcpy");
  for (int64_t at = size; at < count; at += size) {
    CheckCuda(
        cudaMemcpy(memory.as<Bf16>() + at, memory.as<Bf16>(), std::min(count - at, size) * 2, cudaMemcpyDeviceToDevice),
        "cudaMemcpy");
  }
  return memory;
}

// Of one call, which enqueues: the median of `count`, each timed by itself.
template <typename Call>
double MedianMicroseconds(cudaStream_t stream, int count, Call call) {
  cudaEvent_t begin, end;
  for (cudaEvent_t* event : {&begin, &end}) CheckCuda(cudaEventCreate(event), "cudaEventCreate");
  std::vector<double> times;
  constexpr int kWarmUp = 3;
  for (int i = 0; i < kWarmUp + count; ++i) {
    CheckCuda(cudaEventRecord(begin, stream), "cudaEventRecord");
    call();
    CheckCuda(cudaEventRecord(end, stream), "cudaEventRecord");
    CheckCuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    CheckCuda(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (i >= kWarmUp) times.push_back(1e3 * milliseconds);
  }
  for (cudaEvent_t event : {begin, end}) CheckCuda(cudaEventDestroy(event), "cudaEventDestroy");
  std::nth_element(times.begin(), times.begin() + count / 2, times.end());
  return times[count / 2];
}

}  // namespace tandem
