#include "common/tls/tls_identity.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace tandem {
namespace {

using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Bytes = std::unique_ptr<BIO, decltype(&BIO_free_all)>;

Bytes BytesOf(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free_all};
}

// Null: there is none.
Certificate FirstCertificate(const std::string& pem) {
  return {PEM_read_bio_X509(BytesOf(pem).get(), nullptr, nullptr, nullptr), X509_free};
}

Key ReadKey(const std::string& pem) {
  // A key with a passphrase would make OpenSSL ask at the terminal.
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };
  return {PEM_read_bio_PrivateKey(BytesOf(pem).get(), nullptr, no_passphrase, nullptr), EVP_PKEY_free};
}

absl::Status ErrorAt(const TlsSettings::File& file, const std::string& cause) {
  return absl::InvalidArgumentError(absl::StrCat(file.where, ": ", file.path, " ", cause));
}

absl::StatusOr<std::string> ReadPem(const TlsSettings::File& file) {
  std::ifstream stream(file.path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(stream), {});
  if (!stream || text.empty()) return ErrorAt(file, "cannot be read");
  return text;
}

absl::StatusOr<std::string> ReadCertificates(const TlsSettings::File& file) {
  ASSIGN_OR_RETURN(std::string text, ReadPem(file));
  if (FirstCertificate(text) == nullptr) return ErrorAt(file, "holds no certificate in PEM");
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
  const Certificate certificate = FirstCertificate(identity.certificate);
  const Key key = ReadKey(identity.key);
  const bool fit = key != nullptr && X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (key == nullptr) return ErrorAt(settings.key, "holds no private key in PEM, or one with a passphrase");
  if (!fit) return ErrorAt(settings.key, absl::StrCat("is of another certificate than ", settings.certificate.path));
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) {
    return ErrorAt(settings.certificate, "is not valid any more");
  }
  return identity;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadTls(const TlsSettings& settings) {
  if (!settings.is_set()) return nullptr;
  ASSIGN_OR_RETURN(TlsIdentity identity, ReadFiles(settings));
  const Certificate certificate = FirstCertificate(identity.certificate);
  if (X509_check_host(certificate.get(), settings.name.data(), settings.name.size(), 0, nullptr) != 1) {
    return ErrorAt(settings.certificate,
                   absl::StrCat("has no DNS name ", settings.name, " (tls.name) among its subjectAltName"));
  }
  return std::make_shared<const TlsIdentity>(std::move(identity));
}

absl::StatusOr<std::shared_ptr<const TlsIdentity>> LoadClientTls(const TlsSettings& settings) {
  if (!settings.is_set()) return nullptr;
  ASSIGN_OR_RETURN(TlsIdentity identity, ReadFiles(settings));
  return std::make_shared<const TlsIdentity>(std::move(identity));
}

}  // namespace tandem
