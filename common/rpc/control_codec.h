#pragma once

#include "absl/status/statusor.h"
#include "common/worker_state.h"
#include "tandem/v1/control.pb.h"

namespace tandem {

void EncodeRegistration(const WorkerRegistration& registration, v1::Registration* proto);
// INVALID_ARGUMENT names a missing or impossible field.
absl::StatusOr<WorkerRegistration> DecodeRegistration(const v1::Registration& proto);
void EncodeHeartbeat(const WorkerHeartbeat& heartbeat, v1::Heartbeat* proto);
WorkerHeartbeat DecodeHeartbeat(const v1::Heartbeat& proto);
void EncodeDirective(const RouterDirective& directive, v1::RouterDirective* proto);
RouterDirective DecodeDirective(const v1::RouterDirective& proto);

}  // namespace tandem
