#include "kvtransfer/nvlink/gpu_transports.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/nvlink/nvlink_transport.h"
#if TANDEM_WITH_UCX
#include "kvtransfer/ucx/ucx_staged_transport.h"
#include "kvtransfer/ucx/ucx_transport.h"
#endif

namespace tandem {
namespace {

absl::StatusOr<std::unique_ptr<Transport>> MakeOne(const std::string& name, const GpuTransportParts& parts) {
  if (name == "nvlink") {
    ASSIGN_OR_RETURN(std::unique_ptr<Transport> nvlink,
                     NvlinkTransport::Create(*parts.driver, {.device = parts.pool->device(),
                                                             .pool = parts.pool,
                                                             .source_is_computing = parts.source_is_computing}));
    return nvlink;
  }
#if TANDEM_WITH_UCX
  if (name == "ucx") return NewUcxTransport({.memory = parts.memory});
  if (name == "ucx_staged") return NewUcxStagedTransport({.memory = parts.memory});
  if (name == "ucx_host_staged") {
    return NewUcxStagedTransport({.memory = parts.memory, .place = PoolMemory::Place::kHost});
  }
#endif
  return absl::UnimplementedError(absl::StrCat("this build has no transport \"", name, "\" for GPUs"));
}

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeGpuTransports(const std::vector<std::string>& names,
                                                                          const GpuTransportParts& parts) {
  parts.memory->UseOnThisThread();
  std::vector<std::unique_ptr<Transport>> transports;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, MakeOne(name, parts));
    transports.push_back(std::move(transport));
  }
  return transports;
}

}  // namespace tandem
