#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/tls/tls_settings.h"

namespace tandem {

// What the files hold. With a certificate it is a process's; without one it is a client's that only knows whom to
// believe, and `name` may be empty: the server must have the name that was dialled.
struct TlsIdentity {
  std::string certificate, key, authorities, client_authorities, name;
};

// Of a process. Null where nothing is set. INVALID_ARGUMENT, as "WHERE: FILE cause": a file cannot be read or holds no
// PEM, the key is of another certificate, the certificate is not valid any more or lacks the name.
absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadTls(const TlsSettings& settings);
// Of a client, which may have no certificate; `settings.name` is the other side's. Errors as of LoadTls.
absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadClientTls(const TlsSettings& settings);

}  // namespace tandem
