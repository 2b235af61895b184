#include "common/tls/tls_identity.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/tls/pem.h"

namespace tandem {
namespace {

using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Key ReadKey(const std::string& pem) {
  // A key with a passphrase would make OpenSSL ask at the terminal.
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };
  return {PEM_read_bio_PrivateKey(PemBytes(pem).get(), nullptr, no_passphrase, nullptr), EVP_PKEY_free};
}

// All of them, in their order; nothing where one cannot be read.
std::vector<Certificate> ReadChain(const std::string& pem) {
  std::vector<Certificate> chain;
  const std::unique_ptr<BIO, BytesDeleter> bytes = PemBytes(pem);
  while (X509* next = PEM_read_bio_X509(bytes.get(), nullptr, nullptr, nullptr)) chain.emplace_back(next, X509_free);
  const bool is_whole = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;  // There is no other.
  ERR_clear_error();
  if (!is_whole) chain.clear();
  return chain;
}

absl::Status ErrorAt(const TlsSettings::File& file, const std::string& cause) {
  return absl::InvalidArgumentError(absl::StrCat(file.where, ": ", file.path, " ", cause));
}

absl::StatusOr<std::string> ReadPem(const TlsSettings::File& file) {
  std::ifstream stream(file.path, std::ios::binary);
  std::string text;
  char buffer[4096];
  // Not by iterators, which throw for a folder.
  while (stream.read(buffer, sizeof(buffer)) || stream.gcount() > 0) text.append(buffer, stream.gcount());
  if (!stream.eof() || text.empty()) return ErrorAt(file, "cannot be read");
  return text;
}

absl::StatusOr<std::string> ReadCertificates(const TlsSettings::File& file) {
  ASSIGN_OR_RETURN(std::string text, ReadPem(file));
  if (ReadChain(text).empty()) return ErrorAt(file, "holds no certificate in PEM, or one that cannot be read");
  return text;
}

absl::StatusOr<TlsIdentity> ReadFiles(const TlsSettings& settings) {
  TlsIdentity identity{.name = settings.name};
  ASSIGN_OR_RETURN(identity.authorities, ReadCertificates(settings.authorities));
  if (!settings.client_authorities.path.empty()) {
    ASSIGN_OR_RETURN(identity.client_authorities, ReadCertificates(settings.client_authorities));
  }
  if (settings.certificate.path.empty()) return identity;
  ASSIGN_OR_RETURN(identity.certificate, ReadCertificates(settings.certificate));
  ASSIGN_OR_RETURN(identity.key, ReadPem(settings.key));
  const Key key = ReadKey(identity.key);
  const bool fit = key != nullptr && X509_check_private_key(ReadChain(identity.certificate)[0].get(), key.get()) == 1;
  ERR_clear_error();
  if (key == nullptr) return ErrorAt(settings.key, "holds no private key in PEM, or one with a passphrase");
  if (!fit) return ErrorAt(settings.key, absl::StrCat("is of another certificate than ", settings.certificate.path));
  return identity;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadTls(const TlsSettings& settings) {
  if (!settings.is_set()) return nullptr;
  ASSIGN_OR_RETURN(TlsIdentity identity, ReadFiles(settings));
  for (const TlsUse use : {TlsUse::kServer, TlsUse::kClient}) {
    if (const absl::Status status = CheckProcess(identity, identity.certificate, use); !status.ok()) {
      return ErrorAt(settings.certificate, std::string(status.message()));
    }
  }
  return std::make_shared<const TlsIdentity>(std::move(identity));
}

absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadClientTls(const TlsSettings& settings) {
  if (!settings.is_set()) return nullptr;
  ASSIGN_OR_RETURN(TlsIdentity identity, ReadFiles(settings));
  return std::make_shared<const TlsIdentity>(std::move(identity));
}

absl::Status CheckProcess(const TlsIdentity& identity, const std::string& chain, TlsUse use) {
  const std::vector<Certificate> shown = ReadChain(chain), trusted = ReadChain(identity.authorities);
  if (shown.empty()) return absl::UnauthenticatedError("is no certificate");
  const std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(), X509_STORE_free);
  for (const Certificate& one : trusted) X509_STORE_add_cert(store.get(), one.get());
  X509_STORE_set_flags(store.get(), X509_V_FLAG_PARTIAL_CHAIN);
  const std::unique_ptr<STACK_OF(X509), void (*)(STACK_OF(X509)*)> others(sk_X509_new_null(),
                                                                          [](STACK_OF(X509) * s) { sk_X509_free(s); });
  for (const Certificate& one : shown) sk_X509_push(others.get(), one.get());
  const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> check(X509_STORE_CTX_new(),
                                                                              X509_STORE_CTX_free);
  X509_STORE_CTX_init(check.get(), store.get(), shown[0].get(), others.get());
  X509_STORE_CTX_set_default(check.get(), use == TlsUse::kServer ? "ssl_server" : "ssl_client");
  const bool is_signed = X509_verify_cert(check.get()) == 1;
  const std::string cause = X509_verify_cert_error_string(X509_STORE_CTX_get_error(check.get()));
  ERR_clear_error();
  if (!is_signed) {
    return absl::UnauthenticatedError(absl::StrCat("is not one that tls.authorities stand for as a ",
                                                   use == TlsUse::kServer ? "server" : "client", "'s: ", cause));
  }
  if (X509_check_host(shown[0].get(), identity.name.data(), identity.name.size(), kHostFlags, nullptr) == 1) {
    return absl::OkStatus();
  }
  return absl::UnauthenticatedError(
      absl::StrCat("has no DNS name ", identity.name, " (tls.name) among its subjectAltName"));
}

}  // namespace tandem
