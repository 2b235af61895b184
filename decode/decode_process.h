#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/process_needs.h"
#include "common/topology.h"

namespace tandem {

// A whole decode worker: engine, links, gRPC service, registration, metrics.
//
// Thread-safety: thread-safe.
// Ownership: owns all parts and their threads; destroying it stops them in order.
class DecodeProcess {
 public:
  // What the worker will take, without starting it; errors name the setting that cannot work, and its file.
  static absl::StatusOr<ProcessNeeds> Check(const Topology& topology, const ProcessPlan& plan);
  // Loads the model and starts; errors name the setting or address that is wrong.
  static absl::StatusOr<std::unique_ptr<DecodeProcess>> Start(const Topology& topology, const ProcessPlan& plan);
  virtual ~DecodeProcess() = default;

  // Takes no new requests and waits for those it has; false when `timeout` passed first.
  virtual bool Drain(absl::Duration timeout) = 0;
  // Whether it is to be started again: what to do when it has ended.
  virtual bool starts_again() const = 0;
};

}  // namespace tandem
