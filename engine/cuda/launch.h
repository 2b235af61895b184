#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace tandem {

// How a multiprocessor's 256 KB are divided while a kernel runs. A kernel that asks for another division than the one
// before it waits until the multiprocessor is empty, so all those of a step ask for the same, as far as they can.
enum class SharedMemory {
  kUsual,  // That which SetUsualDivision names.
  kCache,  // 100 KB are shared memory, and the rest is a cache, through which skinny_linear's weights come.
  kMost,   // All but 28 KB is shared memory.
};
// Of kernels that have none of their own in mind, from their first launch on; kCache at first. One for the process.
void SetUsualDivision(SharedMemory division);
SharedMemory UsualDivision();
// Lets a kernel have so much dynamic shared memory. Cheap when called again.
cudaError_t PrepareKernel(const void* kernel, size_t shared_bytes, SharedMemory division);

// What the functions below do.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchWith(void (*kernel)(Parameters...), dim3 grid, int cluster_blocks, dim3 block, size_t shared_bytes,
                       SharedMemory division, cudaStream_t stream, Arguments&&... arguments) {
  const cudaError_t error = PrepareKernel(reinterpret_cast<const void*>(kernel), shared_bytes, division);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster_blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster_blocks > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Launches a kernel that may begin before the one before it in the stream has ended: it reads nothing that another
// kernel of the step writes, and writes nothing, until it has called WaitForEarlierKernels. Its blocks form clusters of
// `cluster_blocks`.
template <SharedMemory kDivision = SharedMemory::kUsual, typename... Parameters, typename... Arguments>
cudaError_t LaunchEarlyClusters(void (*kernel)(Parameters...), int clusters, int cluster_blocks, dim3 block,
                                size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return LaunchWith(kernel, clusters * cluster_blocks, cluster_blocks, block, shared_bytes, kDivision, stream,
                    std::forward<Arguments>(arguments)...);
}
template <SharedMemory kDivision = SharedMemory::kUsual, typename... Parameters, typename... Arguments>
cudaError_t LaunchEarly(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                        Arguments&&... arguments) {
  return LaunchWith(kernel, grid, /*cluster_blocks=*/1, block, shared_bytes, kDivision, stream,
                    std::forward<Arguments>(arguments)...);
}

}  // namespace tandem
