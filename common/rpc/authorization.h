#pragma once

#include <grpcpp/server_context.h>

#include "absl/strings/string_view.h"

namespace tandem {

// What clients prove who they are with, as metadata of a call.
inline constexpr char kApiKeyKey[] = "authorization";              // "Bearer KEY", of clients.
inline constexpr char kPeerSecretKey[] = "tandem-cluster-secret";  // Of the cluster's processes.

// A client's metadata; empty where it sent none of this name. Valid as long as the context.
inline absl::string_view MetadataOf(const grpc::ServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto entry = metadata.find(name);
  return entry == metadata.end() ? absl::string_view() : absl::string_view(entry->second.data(), entry->second.size());
}

}  // namespace tandem
