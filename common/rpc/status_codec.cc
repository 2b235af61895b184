#include "common/rpc/status_codec.h"

#include "common/error_reason.h"

namespace tandem {

v1::ErrorDetail ErrorDetailOf(const absl::Status& status) {
  v1::ErrorDetail detail;
  detail.set_reason(std::string(ErrorReasonName(GetErrorReason(status))));
  if (std::optional<absl::Duration> retry_after = GetRetryAfter(status); retry_after.has_value()) {
    int64_t microseconds = absl::ToInt64Microseconds(*retry_after);
    detail.mutable_retry_after()->set_seconds(microseconds / 1'000'000);
    detail.mutable_retry_after()->set_nanos(static_cast<int32_t>(microseconds % 1'000'000 * 1000));
  }
  return detail;
}

absl::Status StatusWithDetail(int code, const std::string& message, const v1::ErrorDetail& detail) {
  std::optional<absl::Duration> retry_after;
  if (detail.has_retry_after()) {
    retry_after = absl::Seconds(detail.retry_after().seconds()) + absl::Nanoseconds(detail.retry_after().nanos());
  }
  return MakeError(static_cast<absl::StatusCode>(code), ParseErrorReason(detail.reason()), message, retry_after);
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      ErrorDetailOf(status).SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  v1::ErrorDetail detail;
  detail.ParseFromString(status.error_details());
  return StatusWithDetail(status.error_code(), status.error_message(), detail);
}

}  // namespace tandem
