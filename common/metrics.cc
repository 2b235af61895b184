#include "common/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <prometheus/exposer.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace tandem {
namespace {

const prometheus::Histogram::BucketBoundaries& SecondsBuckets() {
  static const prometheus::Histogram::BucketBoundaries buckets = {
      .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 100};
  return buckets;
}

void ConnectOnce(const std::string& host, int port) {
  sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port))};
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) return;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  // Whether it succeeds does not matter: the attempt wakes the server.
  (void)connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  close(fd);
}

}  // namespace

MetricsServer::MetricsServer() : registry_(std::make_shared<prometheus::Registry>()) {}

MetricsServer::~MetricsServer() {
  if (exposer_ == nullptr) return;
  // civetweb, below the library, sees that it shall stop when a connection comes, or else after two seconds.
  const int port = this->port();
  absl::Notification stopped;
  std::thread stopper([&] {
    exposer_.reset();
    stopped.Notify();
  });
  while (!stopped.WaitForNotificationWithTimeout(absl::Milliseconds(5))) ConnectOnce(host_, port);
  stopper.join();
}

absl::Status MetricsServer::Listen(const std::string& address) {
  host_ = address.substr(0, address.rfind(':'));
  // civetweb reports a taken port by exception.
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/1);
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("metrics cannot listen on ", address, ": ", error.what()));
  }
  exposer_->RegisterCollectable(registry_);
  return absl::OkStatus();
}

int MetricsServer::port() const {
  if (exposer_ == nullptr) return 0;
  std::vector<int> ports = exposer_->GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

prometheus::Counter& MetricsServer::Counter(const std::string& name, const std::string& help,
                                            const std::map<std::string, std::string>& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(labels);
}

prometheus::Gauge& MetricsServer::Gauge(const std::string& name, const std::string& help,
                                        const std::map<std::string, std::string>& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(labels);
}

prometheus::Histogram& MetricsServer::Histogram(const std::string& name, const std::string& help,
                                                const std::vector<double>& bounds,
                                                const std::map<std::string, std::string>& labels) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(*registry_).Add(labels, bounds);
}

prometheus::Histogram& MetricsServer::Seconds(const std::string& name, const std::string& help,
                                              const std::map<std::string, std::string>& labels) {
  return Histogram(name, help, SecondsBuckets(), labels);
}

std::string MetricsServer::Text() const { return prometheus::TextSerializer().Serialize(registry_->Collect()); }

}  // namespace tandem
