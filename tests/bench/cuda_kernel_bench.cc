// The kernels of engine/cuda at the shapes of Llama-3.1-8B, each against its floor: bytes over the bandwidth of a copy
// (read and written), which this program measures first, or operations over the rate of cuBLAS on 8192^3. Data are
// random, and larger than the cache. Prints the card, then one line a kernel; with an argument, only the bandwidths
// and the rate.

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "engine/cuda/cublas_linear.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/launch.h"
#include "engine/cuda/many_rows.h"
#include "engine/cuda/paged_attention.h"
#include "engine/cuda/paired_linear.h"
#include "engine/cuda/prefill_attention.h"
#include "engine/cuda/row_kernels.h"
#include "engine/cuda/sample_kernel.h"
#include "engine/cuda/skinny_linear.h"
#include "engine/cuda/streamed_attention.h"
#include "engine/cuda/streamed_linear.h"
#include "tests/bench/device_bench.h"
#include "tests/bench/device_read.h"

namespace tandem {
namespace {

constexpr HeadShape kShape = {32, 8, 128};
constexpr int kLayers = 32;

class Bench {
 public:
  Bench() {
    cudaDeviceProp properties;
    CheckCuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    multiprocessors_ = properties.multiProcessorCount;
    CheckCuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
    CheckCuda(cudaEventCreate(&begin_), "cudaEventCreate");
    CheckCuda(cudaEventCreate(&end_), "cudaEventCreate");
    cublas_ = *CublasLinear::Create(stream_);
    weights_ = RandomBf16(kWeightElements);
    scales_ = CopyOf(std::vector<float>(1 << 16, 0.01f));  // Of any matrix here.
    in_ = RandomBf16(int64_t{8192} * 28672);
    out_ = Allocate(int64_t{8192} * 28672 * 2);
    partial_ = Allocate(PairedPartialFloats(multiprocessors_) * sizeof(float));
    arrived_ = CopyOf(std::vector<uint32_t>(PairedArrived(multiprocessors_)));
    printf("%s, %d multiprocessors\n", properties.name, multiprocessors_);
  }

  // `rates_only`: no kernels of ours.
  void Run(bool rates_only) {
    // A copy's bytes, read and written: what only reads may be a little faster.
    const double copy = MicrosecondsOf(
        [&](int) {
          CheckCuda(cudaMemcpyAsync(out_.as<void>(), in_.as<void>(), int64_t{8192} * 28672 * 2,
                                    cudaMemcpyDeviceToDevice, stream_),
                    "cudaMemcpyAsync");
        },
        10);
    bandwidth_ = 2.0 * 8192 * 28672 * 2 / copy * 1e-6;
    const double gemm = MedianMicroseconds(stream_, 40, [&] { Cublas(8192, 8192, 8192, false); });
    rate_ = 2.0 * 8192 * 8192 * 8192 / gemm * 1e-6;
    printf("copy: %.3f TB/s read and written; cuBLAS 8192^3: %.0f TFLOP/s; read: %.3f TB/s\n", bandwidth_, rate_,
           ReadBandwidth());
    if (rates_only) return;
    SetUsualDivision(SharedMemory::kMost);
    for (int rows : {1, 8, 16, 32}) Layers(rows, 2048, By::kStreamed);
    for (int rows : {48, 64, 128}) Layers(rows, 2048, By::kPaired);
    for (int rows : {16, 32, 64, 128}) Layers(rows, 2048, By::kCublas);
    for (int rows : {1, 8, 16, 32, 48, 64, 128}) {
      for (const auto& [name, out, in, gated, add] : {std::tuple{"qkv", 6144, 4096, false, false},
                                                      {"o", 4096, 4096, false, true},
                                                      {"gate_up", 28672, 4096, true, false},
                                                      {"down", 4096, 14336, false, true},
                                                      {"lm_head", 128256, 4096, false, false}}) {
        FewRows(rows <= kMaxStreamedRows ? By::kStreamed : By::kPaired, name, rows, out, in, /*norm=*/false, gated, add,
                WeightKind::kBf16);
      }
    }
    SetUsualDivision(SharedMemory::kCache);  // As engines that use skinny_linear do.
    for (WeightKind kind :
         {WeightKind::kBf16, WeightKind::kFloat8, WeightKind::kInt8, WeightKind::kInt4, WeightKind::kFloat4}) {
      for (int rows : {1, 8, 16}) {
        for (const auto& [name, out, in, norm, gated, add] : {std::tuple{"qkv", 6144, 4096, true, false, false},
                                                              {"o", 4096, 4096, false, false, true},
                                                              {"gate_up", 28672, 4096, true, true, false},
                                                              {"down", 4096, 14336, false, false, true},
                                                              {"lm_head", 128256, 4096, true, false, false}}) {
          if (kind == WeightKind::kBf16 || out < 100000) {
            FewRows(By::kSkinny, name, rows, out, in, norm, gated, add, kind);
          }
        }
      }
    }
    SetUsualDivision(SharedMemory::kMost);
    for (int rows : {64, 128, 2048, 8192}) {
      for (const auto& [name, out, in] :
           {std::tuple{"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}}) {
        Float8(name, rows, out, in);
      }
    }
    for (int rows : {1, 32, 64, 128, 2048, 8192}) {
      for (const auto& [name, out, in] :
           {std::tuple{"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}}) {
        const double us = MicrosecondsOf([&](int) { Cublas(rows, out, in, false); }, rows > 1000 ? 20 : 100);
        printf("cuBLAS %-8s M %5d: %8.1f us, %.3f TB/s of weights, %.0f TFLOP/s\n", name, rows, us,
               2.0 * out * in / us * 1e-6, 2.0 * rows * out * in / us * 1e-6);
      }
    }
    for (bool float8 : {false, true}) {
      for (const auto& [batch, context] : {std::pair{1, 2048}, {8, 2048}, {32, 2048}, {128, 2048}, {1, 32768}}) {
        Decode(batch, context, context, float8);
      }
    }
    for (int batch : {16, 24, 40, 64}) Decode(batch, 2048, 2048, /*float8=*/false);
    for (int batch : {4, 13, 32}) Decode(batch, 8192, 131072, /*float8=*/false);
    for (int tokens : {128, 1024, 2048, 8192}) Prefill(tokens, tokens);
    Prefill(2048, 8192);
    Sample(1);
    Sample(128);
    const double norm = MicrosecondsOf(
        [&](int) {
          CheckCuda(LaunchRmsNorm(in_.as<Bf16>(), weights_.as<Bf16>(), 1e-5f, 8192, 4096, out_.as<Bf16>(), stream_),
                    "norm");
        },
        50);
    const double silu = MicrosecondsOf(
        [&](int) { CheckCuda(LaunchSiluMul(in_.as<Bf16>(), 8192, 14336, out_.as<Bf16>(), stream_), "silu"); }, 50);
    printf("norm of 8192 rows: %.1f us, %.2f TB/s; silu_mul: %.1f us, %.2f TB/s\n", norm,
           2.0 * 8192 * 4096 * 2 / norm * 1e-6, silu, 3.0 * 8192 * 14336 * 2 / silu * 1e-6);
    // What the card keeps up when its power is the limit, as it is within a second.
    for (int i = 0; i < 1000; ++i) Cublas(8192, 8192, 8192, false);
    const double sustained = MicrosecondsOf([&](int) { Cublas(8192, 8192, 8192, false); }, 500);
    printf("cuBLAS 8192^3, after 1,000 in a row: %.0f TFLOP/s\n", 2.0 * 8192 * 8192 * 8192 / sustained * 1e-6);
  }

 private:
  // What computes linear layers.
  enum class By { kSkinny, kStreamed, kPaired, kCublas };
  static const char* NameOf(By by) {
    static constexpr const char* kNames[] = {"skinny", "streamed", "paired", "cuBLAS"};
    return kNames[static_cast<int>(by)];
  }
  cudaError_t Launch(By by, const SkinnyLinearArguments& a) {
    if (by == By::kSkinny) return LaunchSkinnyLinear(a, multiprocessors_, stream_);
    if (by == By::kStreamed) return LaunchStreamedLinear(a, multiprocessors_, stream_);
    return LaunchPairedLinear(a, {partial_.as<float>(), arrived_.as<uint32_t>()}, multiprocessors_, stream_);
  }

  static constexpr int64_t kWeightElements =
      int64_t{128256} * 4096;  // 1 GB: a product's weights are at another place each time.

  // Of one call, as part of a stream full of them.
  double MicrosecondsOf(const std::function<void(int)>& call, int count) {
    for (int i = 0; i < 3; ++i) call(i);
    double best = 1e30;
    for (int repeat = 0; repeat < 3; ++repeat) {
      CheckCuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      for (int i = 0; i < count; ++i) call(i);
      CheckCuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
      CheckCuda(cudaEventSynchronize(end_), "cudaEventSynchronize");
      float milliseconds = 0;
      CheckCuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
      best = std::min(best, 1e3 * milliseconds / count);
    }
    return best;
  }

  double ReadBandwidth() {
    constexpr int64_t kBytes = kWeightElements * 2;
    const double us = MicrosecondsOf(
        [&](int) {
          CheckCuda(LaunchDeviceRead(weights_.as<void>(), kBytes, multiprocessors_, out_.as<uint32_t>(), stream_),
                    "LaunchDeviceRead");
        },
        10);
    return kBytes / us * 1e-6;
  }

  const Bf16* WeightAt(int i, int64_t elements) {
    const int64_t places = std::max<int64_t>(1, kWeightElements / elements);
    return weights_.as<Bf16>() + i % places * elements;
  }

  void Cublas(int rows, int out, int in, bool add) {
    LinearCall call;
    call.in = in_.as<Bf16>();
    call.weight = WeightAt(next_++, int64_t{out} * in);
    call.out = out_.as<void>();
    call.add = add;
    call.rows = rows, call.out_features = out, call.in_features = in;
    cublas_->Run(call);
  }

  FewBitWeight FewBitsAt(int i, WeightKind kind, int out, int in) {
    const int group_bits = kind == WeightKind::kInt4 ? 7 : 4;
    return {
        .kind = kind,
        .codes = reinterpret_cast<const uint8_t*>(WeightAt(i, int64_t{out} * in / (kind == WeightKind::kInt8 ? 2 : 4))),
        .scales = in_.as<const Bf16>() + (int64_t{1} << 26),
        .scale_columns = in >> group_bits,
        .group_bits = group_bits,
        .factors = scales_.as<const float>()};
  }
  Float8Weight Float8At(int i, int out, int in) {
    return {reinterpret_cast<const uint8_t*>(WeightAt(i, int64_t{out} * in / 2)), scales_.as<const float>(),
            Float8ScaleStride(in)};
  }

  // Rows quantised, and multiplied by cuBLAS.
  void Float8(const char* name, int rows, int out, int in) {
    uint8_t* codes = out_.as<uint8_t>();
    float* scales = reinterpret_cast<float*>(codes + int64_t{rows} * in);
    const auto quantise = [&](int) {
      CheckCuda(LaunchQuantiseRows(in_.as<Bf16>(), rows, rows, in, codes, scales, stream_), "LaunchQuantiseRows");
    };
    LinearCall call;
    call.codes = codes;
    call.scales = scales;
    call.out = in_.as<Bf16>() + int64_t{8192} * 14336;
    call.rows = rows, call.out_features = out, call.in_features = in;
    const auto multiply = [&](int i) {
      call.float8 = Float8At(i, out, in);
      cublas_->Run(call);
    };
    const int count = rows > 1000 ? 20 : 100;
    const double quantising = MicrosecondsOf(quantise, count), us = MicrosecondsOf(multiply, count);
    printf("FP8 %-8s M %5d: quantising %6.1f us, %.2f TB/s; cuBLAS %8.1f us, %.3f TB/s of weights, %.0f TFLOP/s\n",
           name, rows, quantising, 3.0 * rows * in / quantising * 1e-6, us, 1.0 * out * in / us * 1e-6,
           2.0 * rows * out * in / us * 1e-6);
  }

  // `norm`: as part of the kernel, which only kSkinny has.
  void FewRows(By by, const char* name, int rows, int out, int in, bool norm, bool gated, bool add, WeightKind kind) {
    SkinnyLinearArguments a;
    a.in = in_.as<Bf16>();
    if (norm) a.norm = in_.as<Bf16>();
    a.epsilon = 1e-5f;
    a.out = out_.as<void>();
    a.is_float = out > 100000;
    a.add = add;
    a.is_gated = gated;
    a.rows = rows, a.out_features = out, a.in_features = in;
    const double us = MicrosecondsOf(
        [&](int i) {
          if (kind == WeightKind::kFloat8) {
            a.float8 = Float8At(i, out, in);
          } else if (IsFewBits(kind)) {
            a.few_bits = FewBitsAt(i, kind, out, in);
          } else {
            a.weight = WeightAt(i, int64_t{out} * in);
          }
          CheckCuda(Launch(by, a), "a layer of few rows");
        },
        out > 100000 ? 20 : 200);
    // Scales of 4 bits are of 16 features each here, and of 128 with INT4.
    const double bytes = kind == WeightKind::kBf16     ? 2
                         : kind == WeightKind::kInt4   ? 0.5 + 2.0 / 128
                         : kind == WeightKind::kFloat4 ? 0.5 + 2.0 / 16
                                                       : 1;
    const double rate = bytes * out * in / us * 1e-6;
    static constexpr const char* kNames[] = {"bf16", "FP8", "INT8", "INT4", "NVFP4"};
    printf("%s %s %-8s rows %2d: %7.1f us, %.3f TB/s, %.2f of copy\n", NameOf(by), kNames[static_cast<int>(kind)], name,
           rows, us, rate, rate / bandwidth_);
  }

  // Sequences of one row with pages in random order, and attention over them. As in an engine each page holds all
  // layers, so that what one of them reads is scattered over the whole pool.
  struct DecodeRig {
    DeviceMemory pool, parts, sequences, table, partial, arrived, turns;
    int64_t layer_bytes = 0;       // That one layer reads.
    int64_t layer_page_bytes = 0;  // Of one page.
    int layers = 1;
    PagedAttentionArguments arguments;

    // Of the layer of this number; streamed where `blocks` is not 0.
    void Attend(int layer, int blocks, cudaStream_t stream) {
      arguments.pages.base = pool.as<uint8_t>() + layer % layers * layer_page_bytes;
      CheckCuda(
          blocks == 0 ? LaunchPagedAttention(arguments, stream) : LaunchStreamedAttention(arguments, blocks, stream),
          "attention");
    }
  };
  // The first sequence has a context of `longest`.
  DecodeRig MakeDecodeRig(int batch, int context, int longest, bool float8, const Bf16* qkv, Bf16* out) {
    constexpr int kPageTokens = 16;
    const int pages_of_one = context / kPageTokens;
    const int element_bytes = float8 ? 1 : 2;
    const int64_t pages = int64_t{pages_of_one} * (batch - 1) + longest / kPageTokens;
    DecodeRig rig;
    rig.layer_page_bytes = int64_t{2} * kShape.num_kv_heads * kPageTokens * kShape.head_dim * element_bytes;
    rig.layer_bytes = pages * rig.layer_page_bytes;
    rig.layers = static_cast<int>(std::min<int64_t>(kLayers, (int64_t{48} << 30) / rig.layer_bytes));
    rig.pool = RandomBf16(rig.layer_bytes / 2 * rig.layers);
    std::vector<SequenceView> sequences;
    std::vector<int32_t> table;
    int32_t first_page = 0;
    for (int i = 0; i < batch; ++i) {
      sequences.push_back({i, 1, i == 0 ? longest : context, first_page});
      first_page += sequences.back().context_tokens / kPageTokens;
    }
    const AttentionSplitter splitter(multiprocessors_, BlocksOfPart(kShape));
    const int num_parts = splitter.NumParts(batch);
    std::vector<AttentionPart> parts(num_parts);
    splitter.Split(sequences, parts.data());
    for (int64_t i = 0; i < pages; ++i) table.push_back(static_cast<int32_t>((i * 7919) % pages));
    rig.parts = CopyOf(parts);
    rig.table = CopyOf(table);
    rig.sequences = CopyOf(sequences);
    rig.partial =
        Allocate(std::max(PartialFloats(kShape, num_parts), StreamedPartialFloats(kShape, multiprocessors_)) * 4);
    const std::vector<uint32_t> zeros(std::max(NumArrived(kShape, num_parts), StreamedArrived(multiprocessors_)));
    rig.arrived = CopyOf(zeros);
    rig.turns = Allocate(batch * (kShape.head_dim / 2) * sizeof(float2));
    PagedAttentionArguments& a = rig.arguments;
    a.step.parts = rig.parts.as<AttentionPart>();
    a.step.num_parts = num_parts;
    a.step.sequences = rig.sequences.as<SequenceView>();
    a.step.pages = rig.table.as<int32_t>();
    a.step.rows = a.step.num_sequences = batch;
    a.shape = kShape;
    a.pages.page_bytes = rig.layers * rig.layer_page_bytes;
    a.pages.head_bytes = kPageTokens * kShape.head_dim * element_bytes;
    a.pages.value_offset = kShape.num_kv_heads * a.pages.head_bytes;
    a.pages.page_tokens = kPageTokens;
    a.pages.is_float8 = float8;
    a.qkv = qkv;
    a.rotation.turns = rig.turns.as<float2>();
    a.appends = true;
    a.partial = rig.partial.as<float>();
    a.arrived = rig.arrived.as<uint32_t>();
    a.out = out;
    return rig;
  }

  // What a decode step spends in its layers, as a graph.
  void Layers(int batch, int context, By by) {
    const int64_t rows = ManyRows::RoundedRows(batch);
    DeviceMemory hidden = Allocate(rows * 4096 * 2), qkv = Allocate(rows * 6144 * 2),
                 attended = Allocate(rows * 4096 * 2), activated = Allocate(rows * 14336 * 2),
                 normed = Allocate(rows * 4096 * 2), gate_up = Allocate(rows * 28672 * 2);
    DecodeRig rig = MakeDecodeRig(batch, context, context, /*float8=*/false, qkv.as<Bf16>(), attended.as<Bf16>());
    int64_t at = 0;
    const auto linear = [&](const DeviceMemory& in, const DeviceMemory& out, int out_features, int in_features,
                            bool norm, bool gated, bool add) {
      SkinnyLinearArguments a;
      if (at + int64_t{out_features} * in_features > kWeightElements) at = 0;
      a.weight = weights_.as<Bf16>() + at;
      at += int64_t{out_features} * in_features;
      a.in = in.as<Bf16>();
      if (norm) a.norm = in_.as<Bf16>();
      a.epsilon = 1e-5f;
      a.out = out.as<void>();
      a.add = add;
      a.is_gated = gated;
      a.rows = batch, a.out_features = out_features, a.in_features = in_features;
      if (norm && by != By::kSkinny) {
        CheckCuda(LaunchRmsNorm(a.in, a.norm, a.epsilon, batch, in_features, normed.as<Bf16>(), stream_), "norm");
        a.in = normed.as<Bf16>();
        a.norm = nullptr;
      }
      if (by != By::kCublas) {
        CheckCuda(Launch(by, a), "a layer of few rows");
        return;
      }
      LinearCall call;
      call.in = a.in;
      call.weight = a.weight;
      call.out = gated ? gate_up.as<void>() : a.out;
      call.add = add;
      call.rows = batch, call.out_features = out_features, call.in_features = in_features;
      cublas_->Run(call);
      if (gated) {
        CheckCuda(LaunchSiluMul(gate_up.as<Bf16>(), batch, out_features / 2, activated.as<Bf16>(), stream_), "silu");
      }
    };
    for (bool with_attention : {true, false}) {
      cudaGraph_t graph;
      cudaGraphExec_t executable;
      CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
      for (int layer = 0; layer < kLayers; ++layer) {
        linear(hidden, qkv, 6144, 4096, true, false, false);
        if (with_attention) {
          rig.Attend(layer, IsStreamedAttention(rig.arguments, 9, multiprocessors_) ? multiprocessors_ : 0, stream_);
        }
        linear(attended, hidden, 4096, 4096, false, false, true);
        linear(hidden, activated, 28672, 4096, true, true, false);
        linear(activated, hidden, 4096, 14336, false, false, true);
      }
      CheckCuda(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
      CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
      const double us =
          MicrosecondsOf([&](int) { CheckCuda(cudaGraphLaunch(executable, stream_), "cudaGraphLaunch"); }, 10);
      const double weight_bytes = 2 * (6144.0 * 4096 + 4096.0 * 4096 + 28672.0 * 4096 + 4096.0 * 14336);
      const double bytes = kLayers * (weight_bytes + (with_attention ? static_cast<double>(rig.layer_bytes) : 0));
      printf("32 layers, %-8s batch %3d context %d %s: %7.1f us, %.3f TB/s, %.2f of copy\n", NameOf(by), batch, context,
             with_attention ? "all" : "without attention", us, bytes / us * 1e-6, bytes / us * 1e-6 / bandwidth_);
      CheckCuda(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
      CheckCuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
  }

  void Decode(int batch, int context, int longest, bool float8) {
    DecodeRig rig = MakeDecodeRig(batch, context, longest, float8, in_.as<Bf16>(), out_.as<Bf16>());
    for (int blocks : {0, multiprocessors_}) {
      if (blocks > 0 && !HasStreamedAttention(rig.arguments, 9)) continue;
      const double us = MicrosecondsOf([&](int i) { rig.Attend(i, blocks, stream_); }, 100);
      const double rate = static_cast<double>(rig.layer_bytes) / us * 1e-6;
      printf("%s attention%s batch %3d context %5d, one of %6d: %7.1f us, %.3f TB/s, %.2f of copy\n",
             blocks == 0 ? "paged   " : "streamed", float8 ? " FP8" : "", batch, context, longest, us, rate,
             rate / bandwidth_);
    }
  }

  void Prefill(int rows, int context) {
    const int page_tokens = 16, pages = context / page_tokens;
    const int64_t page_elements = int64_t{2} * kShape.num_kv_heads * page_tokens * kShape.head_dim;
    std::vector<int32_t> table(pages);
    for (int i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(int64_t{i} * 7919 % pages);
    const std::vector<PrefillTile> tiles = CutIntoTiles({{0, rows, context, 0}}, PrefillTileRows(kShape));
    DeviceMemory device_table = CopyOf(table), device_tiles = CopyOf(tiles), taken = Allocate(sizeof(int32_t));
    PrefillAttentionArguments a;
    a.shape = kShape;
    a.pages.base = weights_.as<uint8_t>();
    a.pages.page_bytes = page_elements * 2;
    a.pages.head_bytes = page_tokens * kShape.head_dim * 2;
    a.pages.value_offset = kShape.num_kv_heads * a.pages.head_bytes;
    a.pages.page_tokens = page_tokens;
    a.page_table = device_table.as<int32_t>();
    a.qkv = in_.as<Bf16>();
    a.rows = rows;
    a.tiles = device_tiles.as<PrefillTile>();
    a.num_tiles = static_cast<int>(tiles.size());
    a.taken = taken.as<int32_t>();
    a.out = out_.as<Bf16>();
    const double us = MicrosecondsOf(
        [&](int) {
          CheckCuda(cudaMemsetAsync(a.taken, 0, sizeof(int32_t), stream_), "cudaMemsetAsync");
          CheckCuda(LaunchPrefillAttention(a, multiprocessors_, stream_), "LaunchPrefillAttention");
        },
        20);
    const double pairs = static_cast<double>(rows) * (context - rows) + static_cast<double>(rows) * rows / 2;
    const double operations = 4.0 * pairs * kShape.num_heads * kShape.head_dim;
    printf("prefill attention rows %5d context %5d: %8.1f us, %.0f TFLOP/s, %.2f of cuBLAS\n", rows, context, us,
           operations / us * 1e-6, operations / us * 1e-6 / rate_);
  }

  void Sample(int rows) {
    const int columns = 128256;
    DeviceMemory settings = Allocate(rows * sizeof(SampleSettings)), tokens = Allocate(rows * 4),
                 results = Allocate(rows * 4);
    const double us = MicrosecondsOf(
        [&](int) {
          CheckCuda(LaunchSample(out_.as<float>(), rows, columns, settings.as<SampleSettings>(), tokens.as<int32_t>(),
                                 results.as<int32_t>(), stream_),
                    "LaunchSample");
        },
        50);
    printf("greedy sampling of %3d rows: %.1f us\n", rows, us);
  }

  int multiprocessors_ = 0, next_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::unique_ptr<CublasLinear> cublas_;
  DeviceMemory weights_, scales_, in_, out_, partial_, arrived_;
  double bandwidth_ = 0, rate_ = 0;  // TB/s, TFLOP/s
};

}  // namespace
}  // namespace tandem

int main(int argc, char**) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  tandem::Bench().Run(argc > 1);
  return 0;
}
