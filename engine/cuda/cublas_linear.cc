#include "engine/cuda/cublas_linear.h"

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {
namespace {

constexpr int kCandidates = 8;
constexpr int kTimedCalls = 4;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;  // 32 MiB are advised for Hopper.

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLinear>> CublasLinear::Create(cudaStream_t stream) {
  ASSIGN_OR_RETURN(const CublasLibrary* library, LoadCublas());
  std::unique_ptr<CublasLinear> linear(new CublasLinear(*library, stream));
  linear->Check(library->create(&linear->handle_), "cublasLtCreate");
  ASSIGN_OR_RETURN(linear->workspace_, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, kWorkspaceBytes));
  CheckCuda(cudaEventCreate(&linear->begin_), "cudaEventCreate");
  CheckCuda(cudaEventCreate(&linear->end_), "cudaEventCreate");
  return linear;
}

CublasLinear::~CublasLinear() {
  for (auto& [shape, plan] : plans_) {
    library_.operation_destroy(plan.operation);
    for (cublasLtMatrixLayout_t layout : {plan.weight, plan.in, plan.out}) library_.layout_destroy(layout);
  }
  for (cudaEvent_t event : {begin_, end_}) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (handle_ != nullptr) library_.destroy(handle_);
}

void CublasLinear::Check(cublasStatus_t status, const char* call) const {
  if (status != CUBLAS_STATUS_SUCCESS) EndAfterGpuFailure(call, library_.status_name(status));
}

CublasLinear::Plan CublasLinear::MakePlan(const LinearCall& call) {
  // The library's matrices are by columns: out^T [out_features, rows] = weight [in, out]^T in^T [in, rows].
  Plan plan;
  const cudaDataType_t out_type = call.is_float ? CUDA_R_32F : CUDA_R_16BF;
  Check(library_.operation_create(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    Check(library_.operation_set(plan.operation, attribute, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (call.bias != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
  }
  const auto layout = [&](cublasLtMatrixLayout_t& matrix, cudaDataType_t type, int64_t rows, int64_t columns) {
    Check(library_.layout_create(&matrix, type, rows, columns, rows), "cublasLtMatrixLayoutCreate");
  };
  layout(plan.weight, CUDA_R_16BF, call.in_features, call.out_features);
  layout(plan.in, CUDA_R_16BF, call.in_features, call.rows);
  layout(plan.out, out_type, call.out_features, call.rows);
  cublasLtMatmulPreference_t preference;
  Check(library_.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  Check(library_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                sizeof(kWorkspaceBytes)),
        "cublasLtMatmulPreferenceSetAttribute");
  cublasLtMatmulHeuristicResult_t results[kCandidates];
  int found = 0;
  Check(library_.find_algorithms(handle_, plan.operation, plan.weight, plan.in, plan.out, plan.out, preference,
                                 is_tuning_ ? kCandidates : 1, results, &found),
        "cublasLtMatmulAlgoGetHeuristic");
  Check(found == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : results[0].state, "cublasLtMatmulAlgoGetHeuristic");
  library_.preference_destroy(preference);
  plan.algorithm = results[0].algo;
  float best = found > 1 ? Time(call, plan, plan.algorithm) : 0;
  for (int i = 1; i < found; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
    const float time = Time(call, plan, results[i].algo);
    if (time >= best) continue;
    best = time;
    plan.algorithm = results[i].algo;
  }
  return plan;
}

void CublasLinear::Multiply(const LinearCall& call, Plan& plan, const cublasLtMatmulAlgo_t& algorithm) {
  const float alpha = 1, beta = call.add ? 1 : 0;
  Check(library_.matmul(handle_, plan.operation, &alpha, call.weight, plan.weight, call.in, plan.in, &beta, call.out,
                        plan.out, call.out, plan.out, &algorithm, workspace_.as<void>(), kWorkspaceBytes, stream_),
        "cublasLtMatmul");
}

float CublasLinear::Time(const LinearCall& call, Plan& plan, const cublasLtMatmulAlgo_t& algorithm) {
  Multiply(call, plan, algorithm);
  CheckCuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
  for (int i = 0; i < kTimedCalls; ++i) Multiply(call, plan, algorithm);
  CheckCuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
  CheckCuda(cudaEventSynchronize(end_), "cudaEventSynchronize");
  float milliseconds = 0;
  CheckCuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
  return 1e3f * milliseconds / kTimedCalls;
}

void CublasLinear::Run(const LinearCall& call) {
  const Shape shape(call.rows, call.out_features, call.in_features, call.is_float, call.add, call.bias != nullptr);
  auto plan = plans_.find(shape);
  if (plan == plans_.end()) plan = plans_.emplace(shape, MakePlan(call)).first;
  Plan& known = plan->second;
  if (call.bias != nullptr) {
    Check(library_.operation_set(known.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &call.bias, sizeof(call.bias)),
          "cublasLtMatmulDescSetAttribute");
  }
  Multiply(call, known, known.algorithm);
}

}  // namespace tandem
