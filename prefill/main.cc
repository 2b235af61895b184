// tandem-prefill: one prefill worker of a topology.

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "common/log.h"
#include "common/process.h"
#include "kvtransfer/network_device.h"
#include "prefill/prefill_process.h"

ABSL_FLAG(std::string, topology, "", "Topology file (YAML).");
ABSL_FLAG(std::string, worker, "", "Which process of the topology this is, such as prefill-0.");
ABSL_FLAG(bool, check, false, "Only check that this worker could serve, and print what it would take.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(30), "How long to wait for running requests when stopped.");

int main(int argc, char** argv) {
  tandem::StartProcess();
  absl::SetProgramUsageMessage("Runs one prefill worker: tandem-prefill --topology FILE --worker NAME");
  absl::ParseCommandLine(argc, argv);
  tandem::ProcessConfig config =
      tandem::LoadProcessConfigOrExit(absl::GetFlag(FLAGS_topology), absl::GetFlag(FLAGS_worker), "tandem-prefill");
  tandem::KeepUcxAt(config.topology.pools[config.process.pool].host);
  if (absl::GetFlag(FLAGS_check)) tandem::ExitWithNeeds(tandem::PrefillProcess::Check(config.topology, config.process));
  auto process = tandem::PrefillProcess::Start(config.topology, config.process);
  tandem::ExitUnlessOk(process.status());
  tandem::AwaitTermination();
  tandem::LogInfo("draining");
  bool drained = (*process)->Drain(absl::GetFlag(FLAGS_drain_timeout));
  tandem::LogInfo("stopped", {{"drained", drained ? "yes" : "no"}});
  return (*process)->starts_again() ? tandem::kStartAgainExitCode : 0;
}
