#include "engine/cuda/many_rows.h"

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"
#include "engine/cuda/few_bit_kernels.h"
#include "engine/cuda/float8_kernels.h"
#include "engine/cuda/gated_linear.h"

namespace tandem {
namespace {

constexpr int64_t kRowRounding = 64;

absl::Status Allocate(DeviceMemory& memory, int64_t bytes) {
  ASSIGN_OR_RETURN(memory, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, bytes));
  return absl::OkStatus();
}

}  // namespace

int64_t ManyRows::RoundedRows(int64_t rows) { return (rows + kRowRounding - 1) / kRowRounding * kRowRounding; }

absl::StatusOr<std::unique_ptr<ManyRows>> ManyRows::Create(const Options& options, cudaStream_t stream) {
  std::unique_ptr<ManyRows> many(new ManyRows(options, stream));
  ASSIGN_OR_RETURN(many->cublas_, CublasLinear::Create(stream));
  const int64_t arrived_bytes = PairedArrived(options.multiprocessors) * int64_t{sizeof(uint32_t)};
  RETURN_IF_ERROR(Allocate(many->partial_, PairedPartialFloats(options.multiprocessors) * int64_t{sizeof(float)}));
  RETURN_IF_ERROR(Allocate(many->arrived_, arrived_bytes));
  CheckCuda(cudaMemsetAsync(many->arrived_.as<void>(), 0, arrived_bytes, stream), "cudaMemsetAsync");
  return many;
}

absl::Status ManyRows::Reserve(int64_t float8_columns, int64_t few_bit_elements) {
  if (float8_columns > float8_columns_) {
    const int64_t rows = RoundedRows(options_.max_rows);
    RETURN_IF_ERROR(Allocate(codes_, rows * float8_columns));
    RETURN_IF_ERROR(Allocate(scales_, rows * float8_columns / kFloat8Block * int64_t{sizeof(float)}));
    float8_columns_ = float8_columns;
  }
  if (few_bit_elements > few_bit_elements_) {
    RETURN_IF_ERROR(Allocate(widened_, few_bit_elements * int64_t{sizeof(Bf16)}));
    few_bit_elements_ = few_bit_elements;
  }
  return absl::OkStatus();
}

void ManyRows::TryAlgorithms(absl::FunctionRef<void()> step) {
  cublas_->StartTrying();
  step();
  cublas_->EndTrying();
}

bool ManyRows::RunPaired(const CudaActivation& in, const CudaLinear& weight, int rows, bool add, bool is_gated,
                         CudaActivation& out) {
  SkinnyLinearArguments arguments;
  arguments.weight = weight.weight();
  arguments.bias = weight.bias();
  arguments.in = in.data();
  arguments.out = out.data<void>();
  arguments.is_float = out.is_float();
  arguments.add = add;
  arguments.is_gated = is_gated;
  arguments.rows = rows;
  arguments.out_features = static_cast<int>(weight.out());
  arguments.in_features = static_cast<int>(weight.in());
  if (!IsPaired(arguments, options_.compute_major)) return false;
  CheckCuda(LaunchPairedLinear(arguments, exchange(), options_.multiprocessors, stream_), "LaunchPairedLinear");
  return true;
}

void ManyRows::Linear(const CudaActivation& in, const CudaLinear& weight, int rows, bool add, CudaActivation& out) {
  if (RunPaired(in, weight, rows, add, /*is_gated=*/false, out)) return;
  LinearCall call;
  call.in = in.data();
  call.weight = weight.weight();
  if (weight.is_few_bits()) {
    call.weight = widened_.as<const Bf16>();
    CheckCuda(LaunchWidenWeight(weight.few_bits(), weight.out(), weight.in(), widened_.as<Bf16>(), stream_),
              "LaunchWidenWeight");
  }
  call.float8 = weight.float8();
  call.bias = weight.bias();
  call.out = out.data<void>();
  call.is_float = out.is_float();
  call.add = add;
  call.rows = rows;
  if (rows > kRowRounding || weight.is_float8()) call.rows = RoundedRows(rows);
  call.out_features = weight.out();
  call.in_features = weight.in();
  if (weight.is_float8()) {
    call.codes = codes_.as<uint8_t>();
    call.scales = scales_.as<float>();
    CheckCuda(LaunchQuantiseRows(call.in, rows, static_cast<int>(call.rows), static_cast<int>(call.in_features),
                                 codes_.as<uint8_t>(), scales_.as<float>(), stream_),
              "LaunchQuantiseRows");
  }
  cublas_->Run(call);
}

bool ManyRows::GatedLinear(const CudaActivation& in, const CudaLinear& weight, int rows, CudaActivation& out) {
  if (RunPaired(in, weight, rows, /*add=*/false, /*is_gated=*/true, out)) return true;
  GatedLinearArguments arguments;
  arguments.weight = weight.weight();
  arguments.in = in.data();
  arguments.out = out.data();
  arguments.rows = rows;
  arguments.columns = static_cast<int>(out.columns());
  arguments.in_features = static_cast<int>(in.columns());
  if (arguments.weight == nullptr || weight.bias() != nullptr || !HasGatedLinear(arguments, options_.compute_major)) {
    return false;
  }
  CheckCuda(LaunchGatedLinear(arguments, options_.multiprocessors, stream_), "LaunchGatedLinear");
  return true;
}

}  // namespace tandem
