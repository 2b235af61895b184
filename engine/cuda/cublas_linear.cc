#include "engine/cuda/cublas_linear.h"

#include <algorithm>
#include <array>

#include "common/status_macros.h"
#include "engine/cuda/cuda_check.h"

namespace tandem {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;  // 32 MiB are advised for Hopper.
constexpr int64_t kLargerThanCache = int64_t{100} << 20;
constexpr int kCandidates = 8;  // Algorithms of a shape, the best by the library's estimate.

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLinear>> CublasLinear::Create(cudaStream_t stream) {
  ASSIGN_OR_RETURN(const CublasLibrary* library, LoadCublas());
  std::unique_ptr<CublasLinear> linear(new CublasLinear(*library, stream));
  linear->Check(library->create(&linear->handle_), "cublasLtCreate");
  for (cudaEvent_t* event : {&linear->begin_, &linear->end_}) CheckCuda(cudaEventCreate(event), "cudaEventCreate");
  ASSIGN_OR_RETURN(linear->workspace_, DeviceMemory::Allocate(DeviceMemory::Kind::kDevice, kWorkspaceBytes));
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
  if (call.float8.codes != nullptr) {
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, call.float8.scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, call.scales);
  }
  const cudaDataType_t in_type = call.float8.codes != nullptr ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  layout(plan.weight, in_type, call.in_features, call.out_features);
  layout(plan.in, in_type, call.in_features, call.rows);
  layout(plan.out, out_type, call.out_features, call.rows);
  cublasLtMatmulPreference_t preference;
  Check(library_.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  Check(library_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                sizeof(kWorkspaceBytes)),
        "cublasLtMatmulPreferenceSetAttribute");
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results;
  int found = 0;
  Check(library_.find_algorithms(handle_, plan.operation, plan.weight, plan.in, plan.out, plan.out, preference,
                                 kCandidates, results.data(), &found),
        "cublasLtMatmulAlgoGetHeuristic");
  library_.preference_destroy(preference);
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) plan.candidates.push_back({results[i].algo});
  }
  Check(plan.candidates.empty() ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS,
        "cublasLtMatmulAlgoGetHeuristic");
  return plan;
}

void CublasLinear::Run(const LinearCall& call) {
  const bool is_float8 = call.float8.codes != nullptr;
  const Shape shape(call.rows, call.out_features, call.in_features, call.is_float, call.add, call.bias != nullptr,
                    is_float8);
  auto plan = plans_.find(shape);
  if (plan == plans_.end()) plan = plans_.emplace(shape, MakePlan(call)).first;
  Plan& known = plan->second;
  if (call.bias != nullptr) {
    Check(library_.operation_set(known.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &call.bias, sizeof(call.bias)),
          "cublasLtMatmulDescSetAttribute");
  }
  if (is_float8) {
    Check(library_.operation_set(known.operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &call.float8.scales,
                                 sizeof(call.float8.scales)),
          "cublasLtMatmulDescSetAttribute");
  }
  if (!is_trying_) {
    Check(Multiply(call, known), "cublasLtMatmul");
    return;
  }
  // Loading a kernel is part of its first run.
  const int64_t weight_bytes = call.out_features * call.in_features * (is_float8 ? 1 : 2);
  const size_t tries = weight_bytes > kLargerThanCache ? 2 * known.candidates.size() : 1;
  for (size_t i = 0; i < tries; ++i) Try(call, known);
}

void CublasLinear::Try(const LinearCall& call, Plan& plan) {
  plan.chosen = plan.tries++ % plan.candidates.size();
  CheckCuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
  if (Multiply(call, plan) != CUBLAS_STATUS_SUCCESS) return;  // Not for these pointers: it stays the slowest.
  CheckCuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
  CheckCuda(cudaEventSynchronize(end_), "cudaEventSynchronize");
  float milliseconds = 0;
  CheckCuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
  float& least = plan.candidates[plan.chosen].milliseconds;
  least = std::min(least, milliseconds);
}

void CublasLinear::EndTrying() {
  is_trying_ = false;
  for (auto& [shape, plan] : plans_) {
    const auto fastest =
        std::min_element(plan.candidates.begin(), plan.candidates.end(),
                         [](const Candidate& a, const Candidate& b) { return a.milliseconds < b.milliseconds; });
    plan.chosen = fastest - plan.candidates.begin();
  }
}

cublasStatus_t CublasLinear::Multiply(const LinearCall& call, const Plan& known) {
  const bool is_float8 = call.float8.codes != nullptr;
  const float alpha = 1, beta = call.add ? 1 : 0;
  const void* weight = is_float8 ? static_cast<const void*>(call.float8.codes) : call.weight;
  const void* in = is_float8 ? static_cast<const void*>(call.codes) : call.in;
  return library_.matmul(handle_, known.operation, &alpha, weight, known.weight, in, known.in, &beta, call.out,
                         known.out, call.out, known.out, &known.candidates[known.chosen].algorithm,
                         workspace_.as<void>(), kWorkspaceBytes, stream_);
}

}  // namespace tandem
