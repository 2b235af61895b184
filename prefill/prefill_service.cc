#include "prefill/prefill_service.h"

#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

class PrefillService final : public v1::Prefill::CallbackService {
 public:
  explicit PrefillService(SessionServer& sessions) : sessions_(sessions) {}
  grpc::ServerBidiReactor<v1::CommandFrame, v1::EventFrame>* Session(grpc::CallbackServerContext*) override {
    return sessions_.NewSession();
  }

 private:
  SessionServer& sessions_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewPrefillService(SessionServer& sessions) {
  return std::make_unique<PrefillService>(sessions);
}

}  // namespace tandem
