#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tandem {

// Where a secret is, which never stands in a topology itself.
struct SecretSource {
  std::string file, env;  // One of them is set; neither: there is no secret.
  std::string where;      // "file:line" of the topology, for errors.
  bool is_set() const { return !file.empty() || !env.empty(); }
};

// The first line of the file, or the variable's value; "" where there is no secret. INVALID_ARGUMENT, without the
// secret: it cannot be read, has fewer than 16 or more than 512 characters, or others than printable ASCII.
absl::StatusOr<std::string> ReadSecret(const SecretSource& source);

// A new one: 128 bits of the kernel's randomness, in hex.
std::string DrawSecret();

// In a time that depends on the length of `given` only. False for an empty secret.
bool IsSameSecret(absl::string_view given, absl::string_view secret);

}  // namespace tandem
