#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kvtransfer/nvlink/driver_function.h"

namespace tandem {

// Makes `device` the thread's current one, and what was current before again at the end. That is a context and not a
// number: a thread that had none would make one on device 0 by naming it, and hold its memory.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    status_ = Contexts().status;
    if (!status_.ok()) return;
    Contexts().get(&former_);
    status_ = CudaStatus(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (Contexts().status.ok()) Contexts().set(former_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  struct Functions {
    Functions() {
      status = FindDriverFunction("cuCtxGetCurrent", &get);
      if (status.ok()) status = FindDriverFunction("cuCtxSetCurrent", &set);
    }
    std::add_pointer_t<decltype(cuCtxGetCurrent)> get = nullptr;
    std::add_pointer_t<decltype(cuCtxSetCurrent)> set = nullptr;
    absl::Status status;
  };
  static const Functions& Contexts() {
    static const Functions functions;
    return functions;
  }
  CUcontext former_ = nullptr;
  absl::Status status_;
};

}  // namespace tandem
