#include "engine/cuda/tensor_map.h"

#include <algorithm>
#include <iterator>

namespace tandem {
namespace {

constexpr size_t kMostDimensions = 5;
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Null: the driver is too old.
EncodeTiled LoadEncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(function)
                                                                       : nullptr;
}

}  // namespace

cudaError_t MakeTensorMap(const __nv_bfloat16* matrix, int rows, int columns, int box_rows, CUtensorMap* map) {
  return MakeTensorMap(matrix, {columns, rows}, {int64_t{columns} * int64_t{sizeof(__nv_bfloat16)}}, {box_rows}, map);
}

cudaError_t MakeTensorMap(const __nv_bfloat16* array, std::initializer_list<int64_t> sizes,
                          std::initializer_list<int64_t> strides, std::initializer_list<int> box, CUtensorMap* map) {
  static const EncodeTiled encode = LoadEncodeTiled();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t all_sizes[kMostDimensions], all_strides[kMostDimensions];
  cuuint32_t whole_box[kMostDimensions] = {kMapColumns}, steps[kMostDimensions] = {1, 1, 1, 1, 1};
  std::copy(sizes.begin(), sizes.end(), all_sizes);
  std::copy(strides.begin(), strides.end(), all_strides);
  std::copy(box.begin(), box.end(), std::next(std::begin(whole_box)));
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(sizes.size()),
             const_cast<__nv_bfloat16*>(array), all_sizes, all_strides, whole_box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace tandem
