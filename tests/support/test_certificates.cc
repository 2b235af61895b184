#include "tests/support/test_certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cctype>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr long kHour = 60 * 60;

template <typename Writer>
std::string Pem(Writer write) {
  BIO* bytes = BIO_new(BIO_s_mem());
  write(bytes);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bytes, &data);
  std::string pem(data, size);
  BIO_free_all(bytes);
  return pem;
}

std::string PemOf(X509* certificate) {
  return Pem([&](BIO* out) { PEM_write_bio_X509(out, certificate); });
}

void AddExtension(X509* certificate, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
  if (extension == nullptr || X509_add_ext(certificate, extension, -1) != 1) abort();
  X509_EXTENSION_free(extension);
}

X509* NewCertificate(const std::string& name, EVP_PKEY* key, long from, long until) {
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  uint32_t serial = 0;
  RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial));
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial >> 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), from);
  X509_gmtime_adj(X509_getm_notAfter(certificate), until);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_pubkey(certificate, key);
  return certificate;
}

}  // namespace

struct TestAuthority::Parts {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = nullptr;
  ~Parts() {
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
};

TestAuthority::TestAuthority(const std::string& name, const TestAuthority* signer) : parts_(std::make_unique<Parts>()) {
  X509* own = parts_->certificate = NewCertificate(name, parts_->key, -kHour, 24 * kHour);
  const Parts& issuer = signer == nullptr ? *parts_ : *signer->parts_;
  X509_set_issuer_name(own, X509_get_subject_name(issuer.certificate));
  AddExtension(own, issuer.certificate, NID_basic_constraints, "critical,CA:TRUE");
  X509_sign(own, issuer.key, EVP_sha256());
  certificate_ = PemOf(own);
}

TestAuthority::~TestAuthority() = default;

TestAuthority::Signed TestAuthority::Sign(const std::vector<std::string>& names, bool is_over) const {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = NewCertificate(names[0], key, -2 * kHour, is_over ? -kHour : 24 * kHour);
  X509_set_issuer_name(certificate, X509_get_subject_name(parts_->certificate));
  std::string list;
  for (const std::string& name : names) {
    absl::StrAppend(&list, list.empty() ? "" : ",", isdigit(name[0]) != 0 ? "IP:" : "DNS:", name);
  }
  AddExtension(certificate, parts_->certificate, NID_subject_alt_name, list);
  X509_sign(certificate, parts_->key, EVP_sha256());
  Signed made{PemOf(certificate),
              Pem([&](BIO* out) { PEM_write_bio_PrivateKey(out, key, nullptr, nullptr, 0, nullptr, nullptr); })};
  X509_free(certificate);
  EVP_PKEY_free(key);
  return made;
}

}  // namespace tandem
