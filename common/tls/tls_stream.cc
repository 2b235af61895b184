#include "common/tls/tls_stream.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/tls/pem.h"

namespace tandem {
namespace {

constexpr unsigned char kSessions[] = "tandem";

std::string LastError() {
  const unsigned long error = ERR_peek_last_error();
  const char* reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : absl::StrCat("error ", error);
}

absl::Status Failed(const char* what) { return absl::InternalError(absl::StrCat("TLS: ", what, ": ", LastError())); }

void AddAuthorities(SSL_CTX* context, const std::string& pem) {
  const std::unique_ptr<BIO, BytesDeleter> bytes = PemBytes(pem);
  while (X509* certificate = PEM_read_bio_X509(bytes.get(), nullptr, nullptr, nullptr)) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate);
    X509_free(certificate);
  }
  ERR_clear_error();  // There are no more.
}

absl::Status ShowCertificate(SSL_CTX* context, const TlsIdentity& identity) {
  const std::unique_ptr<BIO, BytesDeleter> chain = PemBytes(identity.certificate), key_bytes = PemBytes(identity.key);
  X509* own = PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr);
  const bool used_own = own != nullptr && SSL_CTX_use_certificate(context, own) == 1;
  X509_free(own);
  if (!used_own) return Failed("the certificate");
  while (X509* next = PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr)) {
    if (SSL_CTX_add0_chain_cert(context, next) != 1) {
      X509_free(next);
      return Failed("the certificate's chain");
    }
  }
  ERR_clear_error();
  EVP_PKEY* key = PEM_read_bio_PrivateKey(key_bytes.get(), nullptr, nullptr, nullptr);
  const bool used_key = key != nullptr && SSL_CTX_use_PrivateKey(context, key) == 1;
  EVP_PKEY_free(key);
  return used_key ? absl::OkStatus() : Failed("the private key");
}

absl::StatusOr<SSL_CTX*> NewContext(const SSL_METHOD* method) {
  SSL_CTX* context = SSL_CTX_new(method);
  if (context == nullptr) return Failed("a context");
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  // Ends are told by HTTP and by frames themselves.
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(context,
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  // As gRPC: an authority need not be a root.
  X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(context), X509_V_FLAG_PARTIAL_CHAIN);
  SSL_CTX_set_session_id_context(context, kSessions, sizeof(kSessions) - 1);
  return context;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TlsContext>> TlsContext::ForServer(const TlsIdentity& identity, Peer peer) {
  ASSIGN_OR_RETURN(SSL_CTX * context, NewContext(TLS_server_method()));
  const bool is_process = peer == Peer::kProcess;
  std::shared_ptr<const TlsContext> made(
      new TlsContext(context, /*is_server=*/true, is_process ? identity.name : std::string()));
  RETURN_IF_ERROR(ShowCertificate(context, identity));
  if (!is_process && identity.client_authorities.empty()) return made;
  AddAuthorities(context, identity.authorities);
  if (!is_process) AddAuthorities(context, identity.client_authorities);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return made;
}

absl::StatusOr<std::shared_ptr<const TlsContext>> TlsContext::ForClient(const TlsIdentity& identity) {
  if (identity.name.empty()) return absl::InvalidArgumentError("TLS: the other side must be asked for a name");
  ASSIGN_OR_RETURN(SSL_CTX * context, NewContext(TLS_client_method()));
  std::shared_ptr<const TlsContext> made(new TlsContext(context, /*is_server=*/false, identity.name));
  if (!identity.certificate.empty()) RETURN_IF_ERROR(ShowCertificate(context, identity));
  AddAuthorities(context, identity.authorities);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  return made;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

TlsStream::TlsStream(std::shared_ptr<const TlsContext> context, int socket)
    : context_(std::move(context)), ssl_(SSL_new(context_->context_)) {
  if (ssl_ == nullptr || SSL_set_fd(ssl_, socket) != 1) {
    failure_ = absl::StrCat("TLS: ", LastError());
    return;
  }
  if (!context_->peer_name_.empty()) {
    SSL_set_hostflags(ssl_, kHostFlags);
    if (SSL_set1_host(ssl_, context_->peer_name_.c_str()) != 1) {
      failure_ = absl::StrCat("TLS: ", LastError());
      return;
    }
    if (!context_->is_server_) SSL_set_tlsext_host_name(ssl_, context_->peer_name_.c_str());
  }
  context_->is_server_ ? SSL_set_accept_state(ssl_) : SSL_set_connect_state(ssl_);
}

TlsStream::~TlsStream() { SSL_free(ssl_); }

TlsStream::Progress TlsStream::Result(int result) {
  if (result > 0) return {State::kDone, static_cast<size_t>(result)};
  const int error_number = errno;
  switch (SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ:
      return {State::kWantsRead};
    case SSL_ERROR_WANT_WRITE:
      return {State::kWantsWrite};
    case SSL_ERROR_ZERO_RETURN:
      return {State::kClosed};
    case SSL_ERROR_SYSCALL:
      if (error_number == 0) return {State::kClosed};
      failure_ = strerror(error_number);
      return {State::kFailed};
    default:
      break;
  }
  const int reason = ERR_GET_REASON(ERR_peek_error());
  peer_speaks_http_ = reason == SSL_R_HTTP_REQUEST;
  const long verified = SSL_get_verify_result(ssl_);
  failure_ = absl::StrCat("TLS: ", verified != X509_V_OK ? X509_verify_cert_error_string(verified) : LastError());
  return {State::kFailed};
}

TlsStream::Progress TlsStream::Read(char* to, size_t room) {
  if (!failure_.empty()) return {State::kFailed};
  ERR_clear_error();
  errno = 0;
  return Result(SSL_read(ssl_, to, static_cast<int>(std::min<size_t>(room, INT_MAX))));
}

TlsStream::Progress TlsStream::Write(const char* from, size_t size) {
  if (!failure_.empty()) return {State::kFailed};
  ERR_clear_error();
  errno = 0;
  return Result(SSL_write(ssl_, from, static_cast<int>(std::min<size_t>(size, INT_MAX))));
}

void TlsStream::SayGoodbye() {
  if (failure_.empty() && SSL_is_init_finished(ssl_) == 1) SSL_shutdown(ssl_);
  ERR_clear_error();
}

}  // namespace tandem
