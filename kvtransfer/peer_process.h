#pragma once

#include <cstdint>
#include <string>

namespace tandem {

// Identifies this host and its process numbering: processes with equal ids can see each other's
// pids.
std::string HostId();

// A descriptor that becomes readable when the process is gone; -1 when it cannot be had (no such
// process, another host's).
int OpenProcessDescriptor(int64_t pid);

}  // namespace tandem
