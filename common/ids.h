#pragma once

#include <cstdint>
#include <ostream>
#include <utility>

namespace tandem {

// An integer with a name, so that an epoch is not passed for an incarnation. Zero means "none".
template <typename Tag>
class StrongId {
 public:
  constexpr StrongId() = default;
  constexpr explicit StrongId(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }
  constexpr bool is_set() const { return value_ != 0; }
  friend constexpr auto operator<=>(StrongId, StrongId) = default;
  template <typename H>
  friend H AbslHashValue(H state, StrongId id) {
    return H::combine(std::move(state), id.value_);
  }
  friend std::ostream& operator<<(std::ostream& out, StrongId id) { return out << id.value_; }

 private:
  uint64_t value_ = 0;
};

// One request (or one of its n samples) inside a router and its workers; drawn by the router.
using RequestId = StrongId<struct RequestIdTag>;
// One attempt to move one request's KV from one prefill to one decode worker; drawn by the router.
using HandoverId = StrongId<struct HandoverIdTag>;
// One life of a worker process; random, drawn at start.
using Incarnation = StrongId<struct IncarnationTag>;
// One grant of pages by a decode worker; never reused within an incarnation.
using TransferEpoch = StrongId<struct TransferEpochTag>;

// A page of a worker's KV pool: index in [0, num_pages).
using PageIndex = int32_t;
using TokenId = int32_t;

// A 64-bit number that no other process draws: random, seeded by the kernel's source once per
// thread. Never 0.
uint64_t DrawRandomId();

}  // namespace tandem
