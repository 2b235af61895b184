#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/process_needs.h"
#include "common/topology.h"

namespace tandem {

// A whole router: services, core, metrics.
//
// Thread-safety: thread-safe.
// Ownership: owns all parts and their threads; destroying it stops them in order.
class RouterProcess {
 public:
  // Loads tokenizer and template and no more; errors name the model's file.
  static absl::StatusOr<ProcessNeeds> Check(const Topology& topology);
  // Loads tokenizer and template and starts; errors name the setting or address that is wrong.
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Start(const Topology& topology, const ProcessPlan& plan);
  virtual ~RouterProcess() = default;

  // host:port of the gRPC service.
  virtual const std::string& address() const = 0;
  // Takes no new requests and waits for those inside; false when `timeout` passed first.
  virtual bool Drain(absl::Duration timeout) = 0;
};

}  // namespace tandem
