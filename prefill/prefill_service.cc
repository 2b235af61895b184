#include "prefill/prefill_service.h"

#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

class PrefillService final : public SessionService {
 public:
  explicit PrefillService(SessionServer& sessions) : sessions_(sessions) {}
  HostedService hosted() override { return {&service_, v1::Prefill::service_full_name()}; }
  void Start(CompletionLoop& loop) override {
    sessions_.Start(loop, [this](auto... arguments) { service_.RequestSession(arguments...); });
  }

 private:
  SessionServer& sessions_;
  v1::Prefill::AsyncService service_;
};

}  // namespace

std::unique_ptr<SessionService> NewPrefillService(SessionServer& sessions) {
  return std::make_unique<PrefillService>(sessions);
}

}  // namespace tandem
