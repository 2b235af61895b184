#pragma once

// OpenSSL shows here: for the sources of this folder only.

#include <openssl/bio.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace tandem {

// How a certificate's name is looked for: among its DNS names, and as it is.
inline constexpr unsigned kHostFlags = X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_WILDCARDS;

struct BytesDeleter {
  void operator()(BIO* bytes) const { BIO_free_all(bytes); }
};

// Reads from `pem`, which outlives it.
inline std::unique_ptr<BIO, BytesDeleter> PemBytes(const std::string& pem) {
  return std::unique_ptr<BIO, BytesDeleter>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

}  // namespace tandem
