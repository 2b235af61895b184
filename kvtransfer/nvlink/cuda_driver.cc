#include "kvtransfer/nvlink/cuda_driver.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/cuda_error.h"
#include "kvtransfer/nvlink/driver_function.h"

namespace tandem {
namespace {

// The driver's functions that are used, by the names of their symbols.
struct Symbols {
  std::add_pointer_t<decltype(cuMemGetAllocationGranularity)> granularity;
  std::add_pointer_t<decltype(cuMemCreate)> create;
  std::add_pointer_t<decltype(cuMemRelease)> release;
  std::add_pointer_t<decltype(cuMemExportToShareableHandle)> export_handle;
  std::add_pointer_t<decltype(cuMemImportFromShareableHandle)> import_handle;
  std::add_pointer_t<decltype(cuMemAddressReserve)> reserve;
  std::add_pointer_t<decltype(cuMemAddressFree)> free_address;
  std::add_pointer_t<decltype(cuMemMap)> map;
  std::add_pointer_t<decltype(cuMemUnmap)> unmap;
  std::add_pointer_t<decltype(cuMemSetAccess)> set_access;
};

absl::StatusOr<Symbols> FindSymbols() {
  Symbols symbols;
  RETURN_IF_ERROR(FindDriverFunction("cuMemGetAllocationGranularity", &symbols.granularity));
  RETURN_IF_ERROR(FindDriverFunction("cuMemCreate", &symbols.create));
  RETURN_IF_ERROR(FindDriverFunction("cuMemRelease", &symbols.release));
  RETURN_IF_ERROR(FindDriverFunction("cuMemExportToShareableHandle", &symbols.export_handle));
  RETURN_IF_ERROR(FindDriverFunction("cuMemImportFromShareableHandle", &symbols.import_handle));
  RETURN_IF_ERROR(FindDriverFunction("cuMemAddressReserve", &symbols.reserve));
  RETURN_IF_ERROR(FindDriverFunction("cuMemAddressFree", &symbols.free_address));
  RETURN_IF_ERROR(FindDriverFunction("cuMemMap", &symbols.map));
  RETURN_IF_ERROR(FindDriverFunction("cuMemUnmap", &symbols.unmap));
  RETURN_IF_ERROR(FindDriverFunction("cuMemSetAccess", &symbols.set_access));
  return symbols;
}

CUmemAllocationHandleType HandleType(PoolReach reach) {
  return reach == PoolReach::kFabric ? CU_MEM_HANDLE_TYPE_FABRIC : CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
}

CUmemAllocationProp Properties(int device, PoolReach reach) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = HandleType(reach);
  properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
  return properties;
}

class CudaDriver final : public GpuDriver {
 public:
  explicit CudaDriver(const Symbols& symbols) : symbols_(symbols) {}

  absl::StatusOr<uint64_t> Granularity(int device, PoolReach reach) override {
    // Makes the device's primary context, which the other calls need.
    RETURN_IF_ERROR(CudaStatus(cudaInitDevice(device, 0, 0), "cudaInitDevice"));
    const CUmemAllocationProp properties = Properties(device, reach);
    size_t granularity = 0;
    RETURN_IF_ERROR(CudaStatus(symbols_.granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                               "cuMemGetAllocationGranularity"));
    return granularity;
  }

  absl::StatusOr<Allocation> Create(int device, uint64_t bytes, PoolReach reach) override {
    const CUmemAllocationProp properties = Properties(device, reach);
    CUmemGenericAllocationHandle handle = 0;
    RETURN_IF_ERROR(CudaStatus(symbols_.create(&handle, bytes, &properties, 0), "cuMemCreate"));
    return handle;
  }

  absl::StatusOr<ShareableHandle> Export(Allocation allocation, PoolReach reach) override {
    ShareableHandle handle{.reach = reach};
    CUmemFabricHandle fabric = {};
    void* where = reach == PoolReach::kFabric ? static_cast<void*>(&fabric) : static_cast<void*>(&handle.fd);
    RETURN_IF_ERROR(
        CudaStatus(symbols_.export_handle(where, allocation, HandleType(reach), 0), "cuMemExportToShareableHandle"));
    if (reach == PoolReach::kFabric) handle.fabric.assign(reinterpret_cast<const char*>(fabric.data), sizeof(fabric));
    return handle;
  }

  absl::StatusOr<Allocation> Import(const ShareableHandle& handle) override {
    CUmemFabricHandle fabric = {};
    void* what = nullptr;
    if (handle.reach == PoolReach::kFabric) {
      if (handle.fabric.size() != sizeof(fabric)) {
        return absl::InvalidArgumentError(
            absl::StrCat("a fabric handle has ", sizeof(fabric), " bytes, this one ", handle.fabric.size()));
      }
      std::memcpy(fabric.data, handle.fabric.data(), sizeof(fabric));
      what = &fabric;
    } else {
      what = reinterpret_cast<void*>(static_cast<uintptr_t>(handle.fd));
    }
    CUmemGenericAllocationHandle allocation = 0;
    RETURN_IF_ERROR(CudaStatus(symbols_.import_handle(&allocation, what, HandleType(handle.reach)),
                               "cuMemImportFromShareableHandle"));
    return allocation;
  }

  absl::StatusOr<uint8_t*> Map(Allocation allocation, uint64_t bytes, int device) override {
    RETURN_IF_ERROR(CudaStatus(cudaInitDevice(device, 0, 0), "cudaInitDevice"));
    CUdeviceptr base = 0;
    RETURN_IF_ERROR(CudaStatus(symbols_.reserve(&base, bytes, 0, 0, 0), "cuMemAddressReserve"));
    absl::Status status = CudaStatus(symbols_.map(base, bytes, 0, allocation, 0), "cuMemMap");
    if (status.ok()) {
      const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                                      .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
      status = CudaStatus(symbols_.set_access(base, bytes, &access, 1), "cuMemSetAccess");
      if (!status.ok()) symbols_.unmap(base, bytes);
    }
    if (!status.ok()) {
      symbols_.free_address(base, bytes);
      return status;
    }
    return reinterpret_cast<uint8_t*>(base);
  }

  void Unmap(uint8_t* base, uint64_t bytes) override {
    const auto address = reinterpret_cast<CUdeviceptr>(base);
    Complain(CudaStatus(symbols_.unmap(address, bytes), "cuMemUnmap"));
    Complain(CudaStatus(symbols_.free_address(address, bytes), "cuMemAddressFree"));
  }

  void Release(Allocation allocation) override { Complain(CudaStatus(symbols_.release(allocation), "cuMemRelease")); }

 private:
  // Nothing can be done where memory is given back; a lost context shows here, too.
  static void Complain(const absl::Status& status) {
    if (!status.ok()) LogError("GPU memory not given back", {{"cause", status.message()}});
  }
  const Symbols symbols_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GpuDriver>> NewCudaDriver() {
  int devices = 0;
  if (cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
    return absl::UnavailableError(absl::StrCat("no CUDA device: ", cudaGetErrorString(error)));
  }
  absl::StatusOr<Symbols> symbols = FindSymbols();
  if (!symbols.ok()) return symbols.status();
  return std::unique_ptr<GpuDriver>(std::make_unique<CudaDriver>(*symbols));
}

}  // namespace tandem
