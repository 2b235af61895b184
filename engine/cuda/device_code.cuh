#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

// Instructions that the kernels of this folder share; compute capability 9.0 and newer.

namespace tandem {

// Returns when all earlier kernels of the stream have ended and what they wrote can be read.
__device__ __forceinline__ void WaitForEarlierKernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Lets the next kernel of the stream begin as soon as there is room for it.
__device__ __forceinline__ void LetNextKernelBegin() { asm volatile("griddepcontrol.launch_dependents;"); }

// Of memory that no kernel writes; read once.
__device__ __forceinline__ uint4 LoadStreamed(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

// The hardware's named barriers, of `threads` threads that wait or arrive.
__device__ __forceinline__ void SyncNamed(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void ArriveNamed(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// For CopyAsync: what is read once leaves the L2 cache before anything else.
__device__ __forceinline__ uint64_t ReadOncePolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// 16 bytes from global to shared memory; zeros when !valid.
__device__ __forceinline__ void CopyAsync(uint32_t shared, const void* global, bool valid, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global),
               "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ __forceinline__ uint4 LoadShared(uint32_t shared) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(shared)
               : "memory");
  return value;
}
__device__ __forceinline__ void StoreShared(uint32_t shared, const uint4& value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void LoadMatrices(uint32_t (&out)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&out)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void StoreMatrices(uint32_t shared, const uint4& value) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t value) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(value));
  return out;
}
// c[16 x 8] += a[16 x 16] b[16 x 8], of bf16 or f16.
template <typename T = __nv_bfloat16>
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Rounded to the nearest; f16 and FP8 that are too large become the largest, NaN stays NaN.
__device__ __forceinline__ void Put(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void Put(__half& to, float value) {
  constexpr float kLargest = 65504;
  to = __float2half_rn(fabsf(value) > kLargest ? copysignf(kLargest, value) : value);
}
__device__ __forceinline__ void Put(__nv_fp8_e4m3& to, float value) { to = __nv_fp8_e4m3(value); }

template <typename T = __nv_bfloat16>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&pair);
  } else {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&pair);
  }
}
// Two codes of E4M3, in the low half, as f16.
__device__ __forceinline__ uint32_t WidenToHalves(uint32_t codes) {
  const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes), __NV_E4M3);
  return static_cast<uint32_t>(pair.x) | static_cast<uint32_t>(pair.y) << 16;
}
__device__ __forceinline__ float2 UnpackPair(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&pair));
}
__device__ __forceinline__ float SumOfWarp(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
// Of what is below -126 zero.
__device__ __forceinline__ float Exp2(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}
__device__ __forceinline__ float Silu(float value) { return __fdividef(value, 1.0f + __expf(-value)); }

// A warp's work on one head of kHeadDim elements: out = turn(normalise(in)), as RopeAndAppendKv says.
template <int kHeadDim, typename Out>
__device__ __forceinline__ void RotateHead(const __nv_bfloat16* in, const __nv_bfloat16* norm, float epsilon,
                                           const float2* turns, bool adjacent, Out* out) {
  constexpr int kHalf = kHeadDim / 2, kPairs = (kHalf + 31) / 32;
  const int lane = threadIdx.x % 32;
  float x[kPairs], y[kPairs];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane + 32 * i;
    x[i] = y[i] = 0;
    if (pair >= kHalf) continue;
    x[i] = __bfloat162float(in[adjacent ? 2 * pair : pair]);
    y[i] = __bfloat162float(in[adjacent ? 2 * pair + 1 : pair + kHalf]);
    squares += x[i] * x[i] + y[i] * y[i];
  }
  if (norm != nullptr) {
    const float scale = rsqrtf(SumOfWarp(squares) / kHeadDim + epsilon);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = lane + 32 * i;
      if (pair >= kHalf) continue;
      x[i] *= scale * __bfloat162float(norm[adjacent ? 2 * pair : pair]);
      y[i] *= scale * __bfloat162float(norm[adjacent ? 2 * pair + 1 : pair + kHalf]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane + 32 * i;
    if (pair >= kHalf) continue;
    const float2 turn = turns[pair];
    Put(out[adjacent ? 2 * pair : pair], x[i] * turn.x - y[i] * turn.y);
    Put(out[adjacent ? 2 * pair + 1 : pair + kHalf], x[i] * turn.y + y[i] * turn.x);
  }
}

}  // namespace tandem
