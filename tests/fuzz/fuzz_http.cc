#include <memory>

#include "absl/strings/match.h"
#include "router/http/http_server.h"
#include "tests/support/http_client.h"

namespace {

// Answers at once: with a stream where the path says so.
class Handler final : public tandem::HttpHandler {
 public:
  void Handle(tandem::HttpRequest request, std::shared_ptr<tandem::HttpReply> reply) override {
    if (absl::StrContains(request.path, "s")) {
      reply->ExpectStream();
      reply->Write("data: 1\n\n");
      reply->EndStream();
    } else {
      reply->Send({.body = std::move(request.body), .headers = {{"X", std::string(request.method)}}});
    }
  }
  std::string ErrorBody(int, absl::string_view message) override { return std::string(message); }
};

}  // namespace

// A hostile client: its bytes in two pieces, then its end. Whatever they are, the server answers and closes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Handler handler;
  static tandem::HttpServer* const server = [] {
    tandem::HttpServer::Options options;
    options.max_body_bytes = 1000;
    options.max_header_bytes = 1000;
    tandem::HttpServer* made = tandem::HttpServer::Create(options, handler)->release();
    made->Start();
    return made;
  }();
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t cut = size == 0 ? 0 : data[0] % size;
  tandem::HttpClient client(server->address());
  client.Send(bytes.substr(0, cut));
  client.Send(bytes.substr(cut));
  client.Shutdown();
  client.DrainFor(/*seconds=*/10);
  return 0;
}
