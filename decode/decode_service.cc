#include "decode/decode_service.h"

#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

class DecodeService final : public SessionService {
 public:
  explicit DecodeService(SessionServer& sessions) : sessions_(sessions) {}
  HostedService hosted() override { return {&service_, v1::Decode::service_full_name()}; }
  void Start(CompletionLoop& loop) override {
    sessions_.Start(loop, [this](auto... arguments) { service_.RequestSession(arguments...); });
  }

 private:
  SessionServer& sessions_;
  v1::Decode::AsyncService service_;
};

}  // namespace

std::unique_ptr<SessionService> NewDecodeService(SessionServer& sessions) {
  return std::make_unique<DecodeService>(sessions);
}

}  // namespace tandem
