#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tandem {

// A program of this build. Its errors go to a file.
//
// Thread-safety: not thread-safe.
// Ownership: owns the process, which ends with it.
class Program {
 public:
  Program(const std::string& name, std::vector<std::string> arguments, const std::string& log);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  int64_t ResidentBytes() const;

 private:
  pid_t pid_ = -1;
};

// A router, and prefill and decode workers that replay (tests/bench/replay_worker.cc), so that what a test sees is the
// router's part.
//
// Thread-safety: not thread-safe.
// Ownership: owns the processes and their files.
class ReplayCluster {
 public:
  // `pace`: flags of the workers. `router_extra`: more of the router's mapping, each ", key: value".
  explicit ReplayCluster(const std::vector<std::string>& pace, const std::string& router_extra = "");
  ~ReplayCluster();
  // Requests can be served: within 20 s.
  bool AwaitReady();

  // host:port, after AwaitReady.
  const std::string& http_address() const { return http_address_; }
  const std::string& grpc_address() const { return grpc_address_; }
  int64_t RouterBytes() const { return router_->ResidentBytes(); }
  // What the router wrote.
  std::string Output() const;

 private:
  const std::string files_;  // Their common beginning.
  std::string http_address_, grpc_address_;
  std::unique_ptr<Program> router_, workers_;
};

}  // namespace tandem
