#pragma once

#include <string>

namespace tandem {

// The command `tandem bench`: puts load on the cluster behind --router and reports what its users would see; with
// --compare=A.json, sets two reports beside each other instead, of which `other` is the second one. The exit code.
int Bench(const std::string& router, const std::string& other);

}  // namespace tandem
