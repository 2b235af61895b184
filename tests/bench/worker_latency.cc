// What a first token takes without a router: one request after the other, straight to a prefill worker's session, as
// the router speaks to it. The router's own part of a TTFT is what a client sees beyond this.
//
//   worker_latency PREFILL_WORKER REQUESTS
//
// PREFILL_WORKER: the service address, as the router's log names it; replay_worker's, or another's without a secret.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "tandem/v1/worker.grpc.pb.h"

namespace tandem {
namespace {

int Run(const char* worker, int requests) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // As the router's channels.
  const auto stub =
      v1::Prefill::NewStub(grpc::CreateCustomChannel(worker, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  const auto session = stub->Session(&context);
  std::vector<double> milliseconds;
  for (int i = 1; i <= requests; ++i) {
    v1::CommandFrame command;
    v1::StartRequest* start = command.add_starts();
    start->set_id(i);
    for (int token = 0; token < 128; ++token) start->add_prompt(504);  // 512 bytes of text.
    start->mutable_sampling()->set_max_tokens(1);
    const absl::Time sent = Clock::Real().Now();
    v1::EventFrame events;
    if (!session->Write(command) || !session->Read(&events) || events.events_size() == 0 ||
        events.events(0).tokens_size() == 0) {
      context.TryCancel();
      fprintf(stderr, "worker_latency: no first token from %s: %s\n", worker,
              session->Finish().error_message().c_str());
      return 1;
    }
    milliseconds.push_back(absl::ToDoubleMilliseconds(Clock::Real().Now() - sent));
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  printf("%d first tokens: p50 %.3f, p99 %.3f, max %.3f ms\n", requests, milliseconds[milliseconds.size() / 2],
         milliseconds[milliseconds.size() * 99 / 100], milliseconds.back());
  return 0;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  if (argc != 3 || atoi(argv[2]) < 1) {
    fprintf(stderr, "usage: worker_latency PREFILL_WORKER REQUESTS\n");
    return 2;
  }
  return tandem::Run(argv[1], atoi(argv[2]));
}
