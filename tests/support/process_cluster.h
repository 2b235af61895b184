#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/router_client.h"
#include "deploy/launcher.h"

namespace tandem {

// A cluster of real processes that `tandem up`'s launcher runs, on ports of their own choice, for
// tests that kill them.
//
// Thread-safety: thread-safe after construction.
// Ownership: owns the processes and a folder with the topology and their output.
class ProcessCluster {
 public:
  struct Options {
    std::string transports = "shm";
    int prefill_replicas = 2, decode_replicas = 2;
    int decode_ranks = 1;  // More only without prefill workers.
    int routers = 1;
    int decode_service_port = 0;  // Of the first decode worker; 0: drawn.
    std::string prefill_kv_memory = "64 MiB", decode_kv_memory = "64 MiB";
    bool checksums = true;
    bool fixed_ports = false;    // Each life of a process has the addresses of the one before; one replica a pool.
    std::string router_extra;    // More lines of the router's mapping.
    std::string api_key;         // Of client().
    bool tls = false;            // Everywhere; the router listens at a TCP port then.
    bool mutual_tls = false;     // With tls: of clients, too; client_tls() has a certificate.
    std::string topology_extra;  // More lines of the topology.
    int conditional_prefill_tokens = 0;
    std::string limits = "{}";  // Of all pools.
    std::string precision = "quantised";
    // Faulty transfers of a process's first life, as TANDEM_TRANSFER_FAULTS.
    std::function<std::string(const std::string& process)> faults;
    // On GPU 0, with a tiny model of random weights; one replica a pool.
    bool on_gpu = false;
    // What its GPU does to a process in its first life, as TANDEM_GPU_FAULT.
    std::function<std::string(const std::string& process)> gpu_faults;
  };
  explicit ProcessCluster(const Options& options);
  ~ProcessCluster();

  RouterClient& client() { return *client_; }
  // Of a client without a certificate, or, with mutual_tls, with one; null without TLS.
  const std::shared_ptr<const TlsIdentity>& client_tls() const { return client_tls_; }
  const std::string& router() const { return router_; }
  // Of the router of this number.
  std::string router(int replica) const { return replica == 0 ? router_ : absl::StrCat(router_, "-", replica); }
  // host:port of the router's HTTP interface, in its newest life.
  std::string http_address();
  const std::string& topology_file() const { return file_; }
  // Every process is registered, every pair linked.
  bool AwaitReady();
  bool AwaitWorkers(int workers, int links);
  // So many requests are active, or more; 0: none.
  bool AwaitActive(int requests);
  // No request is active, every worker's pages sum to its pool and none is granted, committed, in
  // use or quarantined: within 5 s. Prints what is wrong when that does not come true.
  // `have_left`: workers that were drained for good.
  bool AwaitAllPagesFree(int have_left = 0);
  // Some worker shows pages in this state.
  bool AwaitPagesInState(const std::string& state);
  void Signal(const std::string& process, int signal);
  // host:port, in hex as /proc/net/tcp has them, at which a process listens over TCP, of IPv4 and IPv6.
  std::vector<std::string> ListeningAt(const std::string& process);
  // Resident memory of a process, now.
  int64_t ResidentBytes(const std::string& process);
  int restarts(const std::string& process);
  bool AwaitRestarts(const std::string& process, int count);
  // Some process wrote this.
  bool AwaitOutput(const std::string& text) ABSL_LOCKS_EXCLUDED(output_mu_);
  // Everything the processes wrote.
  std::string Output() ABSL_LOCKS_EXCLUDED(output_mu_);

  // Greedy output of a text, as tokens, with what the call ended in.
  struct Answer {
    absl::StatusOr<GenerateSummary> summary = absl::UnknownError("not run");
    std::vector<TokenId> tokens;
    std::string text, finish_reason;
  };
  // Calls `on_piece` with the number of tokens so far; false cancels.
  Answer Ask(const GenerateOptions& options, const std::function<bool(int tokens)>& on_piece = nullptr);

 private:
  bool AwaitStatus(absl::Duration patience, const std::function<bool(const ClusterSummary&)>& condition);

  const Options options_;
  std::string folder_, file_;
  absl::Mutex mu_;
  std::atomic<int> wanted_ = 0;  // Who waits for mu_ beside the thread.
  std::unique_ptr<Launcher> launcher_ ABSL_GUARDED_BY(mu_);
  std::string output_ ABSL_GUARDED_BY(output_mu_);
  absl::Mutex output_mu_;
  std::atomic<bool> stopping_ = false;
  std::string router_;  // Its address.
  std::shared_ptr<const TlsIdentity> client_tls_;
  std::unique_ptr<RouterClient> client_;
  std::thread thread_;
};

}  // namespace tandem
