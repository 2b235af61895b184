#include "router/http/http_server.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "router/http/http_connection.h"

namespace tandem {
namespace {

namespace asio = boost::asio;
using BoostError = boost::system::error_code;
using asio::ip::tcp;

constexpr std::chrono::milliseconds kAcceptPause(100);
constexpr int kMaxHandlersBeforeFlush = 64;

class AsioHttpServer final : public HttpServer {
 public:
  AsioHttpServer(const Options& options, HttpHandler& handler)
      : options_(options), connections_{.options = options_, .handler = handler} {
    const absl::Duration shortest = std::min({options.request_timeout, options.idle_timeout, options.write_timeout,
                                              options.ping_interval, absl::Seconds(1)});
    check_interval_ = absl::ToChronoMilliseconds(std::max(shortest / 2, absl::Milliseconds(1)));
  }
  ~AsioHttpServer() override { Stop(absl::ZeroDuration()); }

  absl::Status Listen() {
    const size_t colon = options_.address.rfind(':');
    if (colon == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("expected host:port, got \"", options_.address, "\""));
    }
    std::string host = options_.address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
    BoostError error;
    const auto found = tcp::resolver(io_).resolve(host, options_.address.substr(colon + 1),
                                                  tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (error || found.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("\"", options_.address, "\" is no address: ", error.message()));
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.address, ": ", error.message()));
    }
    address_ = absl::StrCat(options_.address.substr(0, colon), ":", acceptor_.local_endpoint().port());
    Accept();
    CheckTimes();
    return absl::OkStatus();
  }

  void Start() override {
    thread_ = std::thread([this] { Main(); });
  }

  const std::string& address() const override { return address_; }

  void Post(absl::AnyInvocable<void()> work) override { asio::post(io_, std::move(work)); }

  void Stop(absl::Duration grace) override {
    if (!thread_.joinable()) return;
    Post([this, grace] {
      BoostError error;
      acceptor_.close(error);
      connections_.stopping = true;
      for (const auto& connection : OpenConnections()) connection->EndAfterThis();
      stop_timer_.expires_after(absl::ToChronoNanoseconds(grace));
      stop_timer_.async_wait([this](const BoostError&) {
        for (const auto& connection : OpenConnections()) connection->Close();
      });
    });
    thread_.join();
  }

 private:
  // Until Stop was called and the last connection is closed.
  void Main() {
    while (!connections_.stopping || !connections_.open.empty()) {
      if (connections_.to_flush.empty()) io_.run_one();
      // What has come meanwhile joins the same writes: the busier it is, the fewer they are.
      for (int i = 0; i < kMaxHandlersBeforeFlush && io_.poll_one() > 0; ++i) {
      }
      connections_.FlushAll();
    }
  }

  void Accept() {
    acceptor_.async_accept([this](const BoostError& error, tcp::socket socket) {
      if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
      if (error) {  // No file descriptor is left: others must close first.
        LogWarning("an HTTP connection cannot be accepted", {{"cause", error.message()}});
        accept_timer_.expires_after(kAcceptPause);
        accept_timer_.async_wait([this](const BoostError& end) {
          if (!end) Accept();
        });
        return;
      }
      auto connection = std::make_shared<HttpConnection>(std::move(socket), connections_);
      const bool is_full = static_cast<int>(connections_.open.size()) >= options_.max_connections;
      connections_.open[connection.get()] = connection;
      connection->Start();
      if (is_full) connection->Refuse(503, "the router has too many connections");
      Accept();
    });
  }

  // Now and from time to time.
  void CheckTimes() {
    connections_.date = absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone());
    const absl::Time now = Clock::Real().Now();
    for (const auto& connection : OpenConnections()) connection->CheckTimes(now);
    check_timer_.expires_after(check_interval_);
    check_timer_.async_wait([this](const BoostError& error) {
      if (!error) CheckTimes();
    });
  }

  // A copy: what is done to them may close them.
  std::vector<std::shared_ptr<HttpConnection>> OpenConnections() const {
    std::vector<std::shared_ptr<HttpConnection>> all;
    for (const auto& [key, connection] : connections_.open) all.push_back(connection);
    return all;
  }

  const Options options_;
  std::string address_;
  std::chrono::milliseconds check_interval_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer check_timer_{io_}, accept_timer_{io_}, stop_timer_{io_};
  HttpConnections connections_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const Options& options, HttpHandler& handler) {
  auto server = std::make_unique<AsioHttpServer>(options, handler);
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace tandem
