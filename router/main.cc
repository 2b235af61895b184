// tandem-router: the router of a topology.

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "common/log.h"
#include "common/process.h"
#include "router/router_process.h"

ABSL_FLAG(std::string, topology, "", "Topology file (YAML).");
ABSL_FLAG(std::string, worker, "router", "Which of its routers this is, such as router-1.");
ABSL_FLAG(bool, check, false, "Only check that the router could serve.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(30), "How long to wait for running requests when stopped.");

int main(int argc, char** argv) {
  tandem::StartProcess();
  absl::SetProgramUsageMessage("Runs the router of a topology: tandem-router --topology FILE");
  absl::ParseCommandLine(argc, argv);
  tandem::ProcessConfig config =
      tandem::LoadProcessConfigOrExit(absl::GetFlag(FLAGS_topology), absl::GetFlag(FLAGS_worker), "tandem-router");
  if (absl::GetFlag(FLAGS_check)) tandem::ExitWithNeeds(tandem::RouterProcess::Check(config.topology));
  auto process = tandem::RouterProcess::Start(config.topology, config.process);
  tandem::ExitUnlessOk(process.status());
  tandem::AwaitTermination();
  tandem::LogInfo("draining");
  bool drained = (*process)->Drain(absl::GetFlag(FLAGS_drain_timeout));
  tandem::LogInfo("stopped", {{"drained", drained ? "yes" : "no"}});
  return 0;
}
