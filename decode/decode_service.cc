#include "decode/decode_service.h"

#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

class DecodeService final : public v1::Decode::CallbackService {
 public:
  explicit DecodeService(SessionServer& sessions) : sessions_(sessions) {}
  grpc::ServerBidiReactor<v1::CommandFrame, v1::EventFrame>* Session(grpc::CallbackServerContext*) override {
    return sessions_.NewSession();
  }

 private:
  SessionServer& sessions_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewDecodeService(SessionServer& sessions) {
  return std::make_unique<DecodeService>(sessions);
}

}  // namespace tandem
