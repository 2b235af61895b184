#pragma once

#include <cuda_runtime_api.h>

#include "kvtransfer/nvlink/cuda_error.h"

namespace tandem {

// Makes `device` the thread's current one, and the former one again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    cudaGetDevice(&former_);
    status_ = CudaStatus(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CurrentDevice() { cudaSetDevice(former_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  int former_ = 0;
  absl::Status status_;
};

}  // namespace tandem
