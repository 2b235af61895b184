#include "kvtransfer/transport.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

class HostSource final : public WriteSource {
 public:
  explicit HostSource(absl::Span<const uint8_t> content) : bytes_(content.begin(), content.end()) {}
  const uint8_t* base() const override { return bytes_.data(); }

 private:
  const std::vector<uint8_t> bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WriteSource>> Transport::MakeSource(absl::Span<const uint8_t> content) {
  return std::make_unique<HostSource>(content);
}

absl::Status Transport::ReadPool(const uint8_t* from, absl::Span<uint8_t> out) {
  std::memcpy(out.data(), from, out.size());
  return absl::OkStatus();
}

absl::Status CheckRuns(absl::Span<const CopyRun> runs, uint64_t size_bytes) {
  for (const CopyRun& run : runs) {
    if (run.destination < 0 || run.bytes < 0 || static_cast<uint64_t>(run.destination + run.bytes) > size_bytes) {
      return absl::OutOfRangeError(absl::StrCat("write of ", run.bytes, " bytes at ", run.destination,
                                                " leaves the peer's pool of ", size_bytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace tandem
