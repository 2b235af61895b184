// Where the time of a prefill step goes, with the shape of Llama-3.1-8B: 32 layers in a row, on a card that is as warm
// as in use, each kernel timed in its place. Data are random, and weights lie in 1 GB that is read round and round.
// Prints the card and its rate (the median of 40 products of 8192^3 by cuBLAS, each timed by itself), then for each
// number of rows (those of the arguments, or 1,024 to 8,192) the mean microseconds of each kernel, and TFLOP/s: with
// gate and up by a kernel of our own, and by cuBLAS and a kernel for the gate alone, in turn.

#include <array>
#include <functional>
#include <memory>

#include "engine/cuda/cublas_linear.h"
#include "engine/cuda/gated_linear.h"
#include "engine/cuda/launch.h"
#include "engine/cuda/prefill_attention.h"
#include "engine/cuda/row_kernels.h"
#include "tests/bench/device_bench.h"

namespace tandem {
namespace {

constexpr HeadShape kShape = {32, 8, 128};
constexpr int kLayers = 32, kHidden = 4096, kQkv = 6144, kWidth = 14336;
constexpr int kPageTokens = 16;
constexpr int64_t kWeightElements = int64_t{128256} * 4096;

class PrefillBench {
 public:
  PrefillBench() {
    cudaDeviceProp properties;
    CheckCuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    multiprocessors_ = properties.multiProcessorCount;
    CheckCuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
    SetUsualDivision(SharedMemory::kMost);
    cublas_ = *CublasLinear::Create(stream_);
    weights_ = RandomBf16(kWeightElements);
    hidden_ = RandomBf16(int64_t{8192} * kHidden);
    normed_ = RandomBf16(int64_t{8192} * kHidden);
    attended_ = RandomBf16(int64_t{8192} * kHidden);
    qkv_ = RandomBf16(int64_t{8192} * kQkv);
    gate_up_ = Allocate(int64_t{8192} * 2 * kWidth * 2);
    activated_ = Allocate(int64_t{8192} * kWidth * 2);
    norm_ = CopyOf(std::vector<Bf16>(kHidden, __float2bfloat16(1)));
    turns_ = CopyOf(std::vector<float>(int64_t{8192} * kShape.head_dim, 0.7f));
    printf("%s, %d multiprocessors, cuBLAS 8192^3, median of 40: %.0f TFLOP/s\n", properties.name, multiprocessors_,
           Rate());
  }

  void Run(int rows) {
    const Step step = MakeStep(rows);
    for (bool own_gate : {true, false, true, false}) {
      std::array<double, 8> sums = {};
      for (int repeat = 0; repeat < 4; ++repeat) {
        const std::array<double, 8> times = Layers(step, rows, own_gate);
        for (size_t i = 0; repeat > 0 && i < times.size(); ++i) sums[i] += times[i] / 3;
      }
      static constexpr const char* kNames[] = {"norm", "qkv", "rope", "attention", "o", "norm", "gate_up", "down"};
      double total = 0, operations = 0;
      printf("rows %d, %s:", rows, own_gate ? "own gate" : "cuBLAS  ");
      for (size_t i = 0; i < sums.size(); ++i) {
        total += sums[i];
        const double elements[] = {0,
                                   1.0 * kQkv * kHidden,
                                   0,
                                   0.5 * rows * kHidden * 2,
                                   1.0 * kHidden * kHidden,
                                   0,
                                   2.0 * kWidth * kHidden,
                                   1.0 * kWidth * kHidden};
        operations += 2 * elements[i] * rows;
        printf(" %s %.0f", kNames[i], sums[i] * 1e3 / kLayers);
        if (elements[i] > 0) printf(" (%.0f)", 2 * elements[i] * rows * kLayers / sums[i] * 1e-9);
      }
      printf("; %.1f ms, %.0f TFLOP/s\n", total, operations * kLayers / total * 1e-9);
    }
  }

 private:
  struct Step {
    DeviceMemory pool, table, positions, sequence_of_row, sequences, tiles, taken;
    int num_tiles = 0;
    StepView view;
    LayerPages pages;
  };

  double Rate() {
    LinearCall call;
    DeviceMemory in = RandomBf16(int64_t{8192} * 8192), out = Allocate(int64_t{8192} * 8192 * 2);
    call.in = in.as<Bf16>();
    call.out = out.as<void>();
    call.rows = call.out_features = call.in_features = 8192;
    call.weight = weights_.as<Bf16>();
    const double us = MedianMicroseconds(stream_, 40, [&] { cublas_->Run(call); });
    return 2.0 * 8192 * 8192 * 8192 / us * 1e-6;
  }

  Step MakeStep(int rows) {
    Step step;
    const int num_pages = rows / kPageTokens;
    step.pages.head_bytes = kPageTokens * kShape.head_dim * 2;
    step.pages.value_offset = kShape.num_kv_heads * step.pages.head_bytes;
    step.pages.page_bytes = 2 * step.pages.value_offset;
    step.pages.page_tokens = kPageTokens;
    step.pool = RandomBf16(num_pages * step.pages.page_bytes / 2);
    step.pages.base = step.pool.as<uint8_t>();
    std::vector<int32_t> table, positions;
    for (int i = 0; i < num_pages; ++i) table.push_back(static_cast<int32_t>(i * 7919 % num_pages));
    for (int i = 0; i < rows; ++i) positions.push_back(i);
    step.table = CopyOf(table);
    step.positions = CopyOf(positions);
    step.sequence_of_row = CopyOf(std::vector<int32_t>(rows, 0));
    step.sequences = CopyOf(std::vector<SequenceView>{{0, rows, rows, 0}});
    const std::vector<PrefillTile> tiles = CutIntoTiles({{0, rows, rows, 0}}, PrefillTileRows(kShape));
    step.tiles = CopyOf(tiles);
    step.num_tiles = static_cast<int>(tiles.size());
    step.taken = Allocate(kLayers * sizeof(int32_t));
    step.view.positions = step.positions.as<int32_t>();
    step.view.sequence_of_row = step.sequence_of_row.as<int32_t>();
    step.view.sequences = step.sequences.as<SequenceView>();
    step.view.pages = step.table.as<int32_t>();
    step.view.rows = rows;
    step.view.num_sequences = 1;
    return step;
  }

  void Mark(size_t at) {
    while (events_.size() <= at) {
      events_.emplace_back();
      CheckCuda(cudaEventCreate(&events_.back()), "cudaEventCreate");
    }
    CheckCuda(cudaEventRecord(events_[at], stream_), "cudaEventRecord");
  }
  // Milliseconds from this mark to the next.
  double Between(size_t at) {
    CheckCuda(cudaEventSynchronize(events_[at + 1]), "cudaEventSynchronize");
    float milliseconds = 0;
    CheckCuda(cudaEventElapsedTime(&milliseconds, events_[at], events_[at + 1]), "cudaEventElapsedTime");
    return milliseconds;
  }

  void Linear(const DeviceMemory& in, const DeviceMemory& out, int rows, int out_features, int in_features, bool gated,
              bool add, bool own_gate) {
    if (at_ + int64_t{out_features} * in_features > kWeightElements) at_ = 0;
    const Bf16* weight = weights_.as<Bf16>() + at_;
    at_ += int64_t{out_features} * in_features;
    if (gated && own_gate) {
      GatedLinearArguments a;
      a.weight = weight;
      a.in = in.as<Bf16>();
      a.out = out.as<Bf16>();
      a.rows = rows, a.columns = out_features / 2, a.in_features = in_features;
      CheckCuda(LaunchGatedLinear(a, multiprocessors_, stream_), "LaunchGatedLinear");
      return;
    }
    LinearCall call;
    call.in = in.as<Bf16>();
    call.weight = weight;
    call.out = gated ? gate_up_.as<void>() : out.as<void>();
    call.add = add;
    call.rows = rows, call.out_features = out_features, call.in_features = in_features;
    cublas_->Run(call);
    if (gated) CheckCuda(LaunchSiluMul(gate_up_.as<Bf16>(), rows, kWidth, out.as<Bf16>(), stream_), "LaunchSiluMul");
  }

  // Milliseconds of each kernel, of all layers.
  std::array<double, 8> Layers(const Step& step, int rows, bool own_gate) {
    const auto norm = [&] {
      CheckCuda(LaunchRmsNorm(hidden_.as<Bf16>(), norm_.as<Bf16>(), 1e-5f, rows, kHidden, normed_.as<Bf16>(), stream_),
                "LaunchRmsNorm");
    };
    HeadRotation rotation;
    rotation.turns = turns_.as<float2>();
    PrefillAttentionArguments attention;
    attention.shape = kShape;
    attention.pages = step.pages;
    attention.page_table = step.view.pages;
    attention.qkv = qkv_.as<Bf16>();
    attention.rows = rows;
    attention.tiles = step.tiles.as<PrefillTile>();
    attention.num_tiles = step.num_tiles;
    attention.taken = step.taken.as<int32_t>();
    attention.out = attended_.as<Bf16>();
    CheckCuda(cudaMemsetAsync(attention.taken, 0, kLayers * sizeof(int32_t), stream_), "cudaMemsetAsync");
    const std::function<void()> parts[] = {
        norm,
        [&] { Linear(normed_, qkv_, rows, kQkv, kHidden, false, false, own_gate); },
        [&] {
          CheckCuda(LaunchRopeAndAppend(step.view, kShape, rotation, step.pages, qkv_.as<Bf16>(), stream_), "rope");
        },
        [&] {
          CheckCuda(LaunchPrefillAttention(attention, multiprocessors_, stream_), "attention");
          ++attention.taken;
        },
        [&] { Linear(attended_, hidden_, rows, kHidden, kHidden, false, true, own_gate); },
        norm,
        [&] { Linear(normed_, activated_, rows, 2 * kWidth, kHidden, true, false, own_gate); },
        [&] { Linear(activated_, hidden_, rows, kHidden, kWidth, false, true, own_gate); }};
    size_t mark = 0;
    Mark(mark);
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const auto& part : parts) {
        part();
        Mark(++mark);
      }
    }
    std::array<double, 8> times = {};
    for (size_t i = 0; i < mark; ++i) times[i % 8] += Between(i);
    return times;
  }

  int multiprocessors_ = 0;
  int64_t at_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<cudaEvent_t> events_;
  std::unique_ptr<CublasLinear> cublas_;
  DeviceMemory weights_, hidden_, normed_, attended_, qkv_, gate_up_, activated_, norm_, turns_;
};

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  std::vector<int> sizes = {1024, 2048, 4096, 8192};
  if (argc > 1) sizes.clear();
  for (int i = 1; i < argc; ++i) sizes.push_back(atoi(argv[i]));
  tandem::PrefillBench bench;
  for (int rows : sizes) bench.Run(rows);
  return 0;
}
