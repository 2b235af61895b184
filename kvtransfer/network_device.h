#pragma once

#include <string>

namespace tandem {

// The network device that has the address of `host` (a number or a name), such as "lo" or "eth0"; empty where none has
// it, or all do (0.0.0.0).
std::string NetworkDeviceOf(const std::string& host);

// Keeps UCX over TCP to the device of `host`: it would listen at every address of this machine. Not where the
// environment chooses devices or transports of UCX itself. Before there are threads: it sets UCX_NET_DEVICES.
void KeepUcxAt(const std::string& host);

}  // namespace tandem
