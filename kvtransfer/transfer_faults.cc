#include "kvtransfer/transfer_faults.h"

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

class FaultyPool final : public RemotePool {
 public:
  FaultyPool(std::unique_ptr<RemotePool> pool, PoolMemory& memory, const TransferFaults& faults)
      : pool_(std::move(pool)), memory_(memory), faults_(faults) {}

  absl::Status Write(WriteOrder order) override {
    ++writes_;
    polls_left_ = faults_.delay_polls;
    if (order.runs.empty()) return absl::OkStatus();
    if (IsTurn(faults_.drop_write_every)) return TakeSums(order);
    if (faults_.late_write_ms > 0) {
      late_.push_back({Clock::Real().Now() + absl::Milliseconds(faults_.late_write_ms), std::move(order)});
      return absl::OkStatus();
    }
    if (IsTurn(faults_.flip_byte_every)) return WriteDamaged(std::move(order));
    if (IsTurn(faults_.duplicate_write_every)) {
      RETURN_IF_ERROR(pool_->Write({.source_base = order.source_base, .runs = order.runs}));
    }
    return pool_->Write(std::move(order));
  }

  absl::StatusOr<bool> PollFlushed() override {
    while (!late_.empty() && late_.front().due <= Clock::Real().Now()) {
      RETURN_IF_ERROR(pool_->Write(std::move(late_.front().order)));
      late_.pop_front();
    }
    if (!late_.empty() || polls_left_-- > 0) return false;
    polls_left_ = 0;
    if (IsTurn(faults_.fail_flush_every)) return absl::UnavailableError("fault point: the flush failed");
    return pool_->PollFlushed();
  }

 private:
  struct LateWrite {
    absl::Time due;
    WriteOrder order;
  };
  bool IsTurn(int every) const { return every > 0 && writes_ % every == 0; }

  // As if all had been written.
  absl::Status TakeSums(WriteOrder& order) {
    RETURN_IF_ERROR(AddSums(memory_, order));
    order.sums.reset();
    return absl::OkStatus();
  }

  // Writes all but the first run as they are, and that one with a byte changed.
  absl::Status WriteDamaged(WriteOrder order) {
    RETURN_IF_ERROR(TakeSums(order));
    const CopyRun first = order.runs[0];
    std::vector<uint8_t> bytes(first.bytes);
    RETURN_IF_ERROR(memory_.Read(order.source_base + first.source, absl::MakeSpan(bytes)));
    bytes[bytes.size() / 2] ^= 1;
    absl::StatusOr<std::unique_ptr<PoolBuffer>> copy = memory_.MakeCopy(bytes);
    if (!copy.ok()) return copy.status();
    order.runs.erase(order.runs.begin());
    RETURN_IF_ERROR(pool_->Write({.source_base = order.source_base, .runs = std::move(order.runs)}));
    damaged_.push_back(*std::move(copy));
    return pool_->Write({.source_base = damaged_.back()->base(), .runs = {{0, first.destination, first.bytes}}});
  }

  // Before the pool, which may still read it.
  std::vector<std::unique_ptr<PoolBuffer>> damaged_;
  const std::unique_ptr<RemotePool> pool_;
  PoolMemory& memory_;
  const TransferFaults faults_;
  int64_t writes_ = 0;
  int polls_left_ = 0;
  std::deque<LateWrite> late_;
};

}  // namespace

std::unique_ptr<RemotePool> WithFaults(std::unique_ptr<RemotePool> pool, PoolMemory& memory,
                                       const TransferFaults& faults) {
  if (!faults.any()) return pool;
  return std::make_unique<FaultyPool>(std::move(pool), memory, faults);
}

absl::StatusOr<TransferFaults> ParseTransferFaults(absl::string_view text) {
  TransferFaults faults;
  const std::pair<absl::string_view, int*> counts[] = {
      {"flip_byte_every", &faults.flip_byte_every},
      {"drop_write_every", &faults.drop_write_every},
      {"duplicate_write_every", &faults.duplicate_write_every},
      {"delay_polls", &faults.delay_polls},
      {"late_write_ms", &faults.late_write_ms},
      {"fail_flush_every", &faults.fail_flush_every},
      {"drop_acks", &faults.drop_acks},
  };
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    std::pair<absl::string_view, absl::string_view> setting = absl::StrSplit(part, absl::MaxSplits('=', 1));
    if (setting.first == "peer") {
      faults.peer = std::string(setting.second);
      continue;
    }
    auto known = std::find_if(std::begin(counts), std::end(counts),
                              [&](const auto& count) { return count.first == setting.first; });
    if (known == std::end(counts)) {
      return absl::InvalidArgumentError(absl::StrCat("transfer fault \"", setting.first, "\" is unknown"));
    }
    if (!absl::SimpleAtoi(setting.second, known->second) || *known->second < 0) {
      return absl::InvalidArgumentError(absl::StrCat("transfer fault \"", part, "\": expected NAME=COUNT"));
    }
  }
  return faults;
}

}  // namespace tandem
