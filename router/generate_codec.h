#pragma once

#include "absl/time/time.h"
#include "router/request.h"
#include "router/request_builder.h"
#include "tandem/v1/router.pb.h"

namespace tandem {

// Messages of tandem.v1.Router to the router's own form, and back.

// What a client asks for; RequestBuilder checks it.
RawRequest DecodeRequest(const v1::GenerateRequest& proto);

v1::FinishReason EncodeFinish(RequestFinish finish);
void EncodeUsage(const RequestUsage& usage, v1::Usage* proto);
void EncodeDuration(absl::Duration duration, google::protobuf::Duration* proto);

}  // namespace tandem
