#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/topology.h"

namespace tandem {

// Membership in native form; proto/tandem/v1/control.proto says what each field means.

struct WorkerRegistration {
  std::string worker_id;
  Incarnation incarnation;
  Role role = Role::kPrefill;
  std::string service_address, link_address;
  std::string domain;
  uint64_t model_fingerprint = 0;
  int total_pages = 0;
  int page_tokens = 0;
  int max_context_tokens = 0;
  int64_t page_bytes = 0;  // KV of one page.
};

struct LinkReport {
  std::string peer_worker;
  Incarnation peer;
  bool up = false;
  std::string transport;
  std::string path;  // What connects the two, as the transport says: "tcp/lo".
  double gigabytes_per_second = 0, latency_us = 0;
  std::string error;  // Why it is down; or, while it is up, which transports were passed over, and why.
};

struct WorkerHeartbeat {
  int running_requests = 0, waiting_requests = 0;
  int64_t queued_prompt_tokens = 0;
  int free_pages = 0;
  std::vector<std::pair<std::string, int>> pages;  // By state; sums to the pool.
  std::string state = "ready";                     // "ready", "draining" or "degraded".
  int64_t turns = 0;
  int64_t preemptions = 0;
  std::vector<LinkReport> links;
  std::vector<uint64_t> stored_hashes, dropped_hashes;
  int64_t sequence = 0;
};

// A decode worker that a prefill worker must link to.
struct DirectedPeer {
  std::string worker_id;
  Incarnation incarnation;
  std::string link_address;
  bool operator==(const DirectedPeer&) const = default;
};

struct RouterDirective {
  std::vector<DirectedPeer> peers;
  bool drain = false;
  bool start_again = false;  // With drain.
  bool tell_all = false;     // The next heartbeat tells all of the prefix cache.
};

}  // namespace tandem
