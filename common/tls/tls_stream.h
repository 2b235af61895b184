#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/tls/tls_identity.h"

struct ssl_ctx_st;
struct ssl_st;

namespace tandem {

// What the TLS connections of one kind have in common; TLS 1.2 and newer.
//
// Thread-safety: thread-safe. Ownership: shared by its streams.
class TlsContext {
 public:
  // Whom the other side must be.
  enum class Peer {
    kAnyone,   // It shows no certificate, or, with client_authorities, one that these or the authorities signed.
    kProcess,  // One of the cluster: its certificate has the name, and the authorities signed it.
  };
  // INTERNAL: OpenSSL does not take what LoadTls has checked.
  static absl::StatusOr<std::shared_ptr<const TlsContext>> ForServer(const TlsIdentity& identity, Peer peer);
  // The other side must be a kProcess. INVALID_ARGUMENT: the identity has no name to ask for.
  static absl::StatusOr<std::shared_ptr<const TlsContext>> ForClient(const TlsIdentity& identity);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

 private:
  friend class TlsStream;
  TlsContext(ssl_ctx_st* context, bool is_server, std::string peer_name)
      : context_(context), is_server_(is_server), peer_name_(std::move(peer_name)) {}
  ssl_ctx_st* const context_;
  const bool is_server_;
  const std::string peer_name_;  // Empty: its name does not matter.
};

// TLS over a socket of the caller's, which reads and writes as far as the socket does not block: the handshake is part
// of the first reads and writes. Reading may want to write, and the other way round.
//
// A write to a socket that the peer has closed raises SIGPIPE, which programs ignore (common/process).
//
// Thread-safety: not thread-safe. Ownership: the socket outlives it.
class TlsStream {
 public:
  enum class State {
    kDone,        // Some bytes were moved.
    kWantsRead,   // None were; again when the socket can be read,
    kWantsWrite,  // or written.
    kClosed,      // The peer has ended the connection.
    kFailed,      // failure() says why; for good.
  };
  struct Progress {
    State state;
    size_t bytes = 0;
  };
  // One record is at most so long: a read with so much room leaves nothing behind that the socket would not tell of.
  static constexpr size_t kRecordBytes = 16 << 10;

  TlsStream(std::shared_ptr<const TlsContext> context, int socket);
  ~TlsStream();

  Progress Read(char* to, size_t room);
  // What was not taken is given again, with the same bytes at its beginning.
  Progress Write(const char* from, size_t size);
  // Says that nothing more is written.
  void SayGoodbye();
  const std::string& failure() const { return failure_; }
  // The failure is that the peer speaks HTTP without TLS.
  bool peer_speaks_http() const { return peer_speaks_http_; }

 private:
  Progress Result(int result);

  const std::shared_ptr<const TlsContext> context_;
  ssl_st* const ssl_;
  std::string failure_;
  bool peer_speaks_http_ = false;
};

}  // namespace tandem
