#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "tandem/v1/common.pb.h"

namespace tandem {

// absl::Status to grpc::Status and back, with reason and retry hint as ErrorDetail.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

v1::ErrorDetail ErrorDetailOf(const absl::Status& status);
absl::Status StatusWithDetail(int code, const std::string& message, const v1::ErrorDetail& detail);

}  // namespace tandem
