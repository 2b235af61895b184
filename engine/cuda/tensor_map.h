#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

namespace tandem {

inline constexpr int kMapColumns = 64;  // That are copied at a time: 128 bytes.

// For copies between global and shared memory by the copy engine (TMA), of a matrix [rows][columns]: `box_rows` rows of
// kMapColumns at a time, whose 16 bytes change places within each 8 rows (128-byte swizzle). What lies outside the
// matrix is read as zeros and not written. `columns` is a multiple of 8. cudaErrorNotSupported: the driver is too old.
cudaError_t MakeTensorMap(const __nv_bfloat16* matrix, int rows, int columns, int box_rows, CUtensorMap* map);

// The same of an array of up to five dimensions. `sizes`, the innermost first; `strides`: bytes from one to the next in
// each dimension but the innermost; `box`: how many of each dimension but the innermost are copied at a time.
cudaError_t MakeTensorMap(const __nv_bfloat16* array, std::initializer_list<int64_t> sizes,
                          std::initializer_list<int64_t> strides, std::initializer_list<int> box, CUtensorMap* map);

}  // namespace tandem
