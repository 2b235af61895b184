#include "kvtransfer/transport_factory.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#if TANDEM_WITH_UCX
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

absl::StatusOr<TransferFaults> ParseTransferFaults(absl::string_view text) {
  TransferFaults faults;
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    std::pair<absl::string_view, absl::string_view> setting = absl::StrSplit(part, absl::MaxSplits('=', 1));
    if (setting.first == "peer") {
      faults.peer = std::string(setting.second);
      continue;
    }
    int value = 0;
    if (!absl::SimpleAtoi(setting.second, &value) || value < 0) {
      return absl::InvalidArgumentError(absl::StrCat("transfer fault \"", part, "\": expected NAME=COUNT"));
    }
    if (setting.first == "flip_byte_every") {
      faults.flip_byte_every = value;
    } else if (setting.first == "drop_write_every") {
      faults.drop_write_every = value;
    } else if (setting.first == "duplicate_write_every") {
      faults.duplicate_write_every = value;
    } else if (setting.first == "delay_polls") {
      faults.delay_polls = value;
    } else if (setting.first == "fail_flush_every") {
      faults.fail_flush_every = value;
    } else if (setting.first == "drop_acks") {
      faults.drop_acks = value;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("transfer fault \"", setting.first, "\" is unknown"));
    }
  }
  return faults;
}

}  // namespace tandem
