#pragma once

#include <string>

namespace tandem {

// Where the certificates of a cluster are, all in PEM.
struct TlsSettings {
  struct File {
    std::string path;   // Empty: none.
    std::string where;  // Who names it, for errors: "file:line: tls.key" of a topology, or a variable.
  };
  File certificate, key;    // Of every process: its chain, its own certificate first, and the private key.
  File authorities;         // Who signs the processes' certificates.
  File client_authorities;  // Who signs those of clients, who must show one then; without it they need none.
  std::string name;         // Of the cluster's processes, as a DNS name in each of their certificates.
  bool is_set() const { return !authorities.path.empty(); }
};

}  // namespace tandem
