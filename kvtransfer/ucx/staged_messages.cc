#include "kvtransfer/ucx/staged_messages.h"

namespace tandem {

absl::Status TakeStagedMessages(ucp_worker_h worker, ucp_am_recv_callback_t callback, void* argument) {
  ucp_am_handler_param_t param = {};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB |
                     UCP_AM_HANDLER_PARAM_FIELD_ARG;
  param.id = kStagedMessageId;
  param.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
  param.cb = callback;
  param.arg = argument;
  return UcxStatus(ucp_worker_set_am_recv_handler(worker, &param), "ucp_worker_set_am_recv_handler");
}

void DropStagedMessages(ucp_worker_h worker) {
  // Not without a handler, which would make UCX warn of each.
  auto drop = [](void*, const void*, size_t, void*, size_t, const ucp_am_recv_param_t*) { return UCS_OK; };
  TakeStagedMessages(worker, drop, nullptr).IgnoreError();
}

absl::Status SendStaged(ucp_ep_h endpoint, const StagedHeader& header, const void* data, size_t bytes, bool on_device,
                        StagedRequest& request) {
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.flags = UCP_AM_SEND_FLAG_COPY_HEADER;
  const bool is_chunk = header.kind == StagedHeader::Kind::kRuns || header.kind == StagedHeader::Kind::kData;
  if (!is_chunk) param.flags |= UCP_AM_SEND_FLAG_EAGER;
  param.memory_type = on_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  return request.Begin(ucp_am_send_nbx(endpoint, kStagedMessageId, &header, sizeof(header), data, bytes, &param),
                       "ucp_am_send_nbx");
}

}  // namespace tandem
