#include "tests/gpu/gpu_presence.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace tandem {

GpuPresence FindGpus() {
  GpuPresence presence;
  if (const cudaError_t error = cudaGetDeviceCount(&presence.devices); error != cudaSuccess || presence.devices == 0) {
    presence.devices = 0;
    presence.is_broken = access("/dev/nvidia0", F_OK) == 0;
    presence.cause = absl::StrCat("no GPU here: ", cudaGetErrorString(error));
    return presence;
  }
  int reaches = 0;
  if (presence.devices > 1 && cudaDeviceCanAccessPeer(&reaches, 0, 1) == cudaSuccess && reaches == 1) {
    presence.peer_device = 1;
  }
  return presence;
}

}  // namespace tandem
