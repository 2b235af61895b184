#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router/api_keys.h"

namespace tandem {

// Bounds the requests inside the router: over the limit a request is refused at once, with a hint
// when to come back, rather than queued.
//
// Each tenant has a share of the places, by its weight. One may take places over its share only while a fifth of all
// is free: so whoever is under its share finds a place soon.
//
// Thread-safety: not thread-safe, but for CheckRoom; the router's owner thread owns it.
class Admission {
 public:
  // `tenants` may be empty: all requests are kAnyone's then.
  Admission(int64_t max_active, const std::vector<ApiKeySettings>& tenants);

  // RESOURCE_EXHAUSTED, as Admit, while all places are taken: before a call's text is read, which costs more than to
  // refuse it. From any thread.
  absl::Status CheckRoom() const;
  // Takes `count` places (one per sample) or none. RESOURCE_EXHAUSTED (QUEUE_FULL) with
  // retry-after: the time in which that many requests have lately finished.
  absl::Status Admit(Tenant tenant, int count, absl::Time now);
  // Gives one place back.
  void Release(Tenant tenant, absl::Time now);
  int64_t active() const { return active_; }

 private:
  struct Share {
    std::string name;
    int64_t limit = 0;  // Never more.
    int64_t places = 0;
    int64_t active = 0;
  };
  absl::Status RefuseAsFull(absl::Duration retry_after) const;
  // When `count` places may be free again.
  absl::Duration RetryAfter(int count, absl::Time now) const;
  absl::Status Refuse(absl::string_view why, int count, absl::Time now) const;

  const int64_t max_active_;
  std::vector<Share> shares_;  // By tenant.
  std::atomic<int64_t> active_ = 0;
  absl::Time last_release_ = absl::InfinitePast();
  std::atomic<int64_t> mean_gap_ns_ = 100'000'000;  // Between releases; moving average.
};

}  // namespace tandem
