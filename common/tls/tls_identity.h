#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tls/tls_settings.h"

namespace tandem {

// What the files hold. With a certificate it is a process's; without one it is a client's that only knows whom to
// believe, and `name` may be empty: gRPC then asks for the name that was dialled.
struct TlsIdentity {
  std::string certificate, key, authorities, client_authorities, name;
};

// Of a process. Null where nothing is set. INVALID_ARGUMENT, as "WHERE: FILE cause": a file cannot be read or holds no
// PEM, the key is of another certificate, or CheckProcess fails for its own certificate, as a server's or a client's.
absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadTls(const TlsSettings& settings);
// Of a client, which may have no certificate; `settings.name` is the other side's. Errors as of LoadTls.
absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadClientTls(const TlsSettings& settings);

// Whether a chain of certificates in PEM, its own one first, is a process's of the cluster: signed by the authorities,
// not by those of clients, valid now and for this use, and of the name, as a DNS name. UNAUTHENTICATED says what is
// wrong.
enum class TlsUse { kServer, kClient };
absl::Status CheckProcess(const TlsIdentity& identity, const std::string& chain, TlsUse use);

}  // namespace tandem
