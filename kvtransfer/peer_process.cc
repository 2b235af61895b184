#include "kvtransfer/peer_process.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"

namespace tandem {

std::string HostId() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  struct stat pid_namespace = {};
  stat("/proc/self/ns/pid", &pid_namespace);
  return absl::StrCat(boot_id, ":", pid_namespace.st_ino);
}

int OpenProcessDescriptor(int64_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0)); }

}  // namespace tandem
