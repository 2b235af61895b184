#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvtransfer/nvlink/gpu_driver.h"

namespace tandem {

// GpuDriver on CUDA's virtual memory calls, which it finds in the driver at run time: programs with it start on
// machines that have none. UNAVAILABLE without a driver or a device.
absl::StatusOr<std::unique_ptr<GpuDriver>> NewCudaDriver();

}  // namespace tandem
