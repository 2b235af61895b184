#include "kvtransfer/transport_factory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvtransfer/shm/shm_transport.h"
#if TANDEM_WITH_UCX
#include "kvtransfer/ucx/ucx_staged_transport.h"
#include "kvtransfer/ucx/ucx_transport.h"
#endif

namespace tandem {

absl::StatusOr<std::vector<std::unique_ptr<Transport>>> MakeTransports(const std::vector<std::string>& names,
                                                                       const ShmPool* pool) {
  std::vector<std::unique_ptr<Transport>> transports;
  for (const std::string& name : names) {
    if (name == "shm") {
      transports.push_back(NewShmTransport(pool));
      continue;
    }
#if TANDEM_WITH_UCX
    if (name == "ucx_staged") {
      ASSIGN_OR_RETURN(std::unique_ptr<Transport> staged, NewUcxStagedTransport());
      transports.push_back(std::move(staged));
      continue;
    }
    if (name == "ucx") {
      ASSIGN_OR_RETURN(std::unique_ptr<Transport> ucx, NewUcxTransport());
      transports.push_back(std::move(ucx));
      continue;
    }
#endif
    return absl::UnimplementedError(absl::StrCat("links.transports: this build has no transport \"", name, "\""));
  }
  return transports;
}

std::string TransportVersion() {
#if TANDEM_WITH_UCX
  return UcxVersion();
#else
  return "";
#endif
}

}  // namespace tandem
