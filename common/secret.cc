#include "common/secret.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr size_t kLeastBytes = 16, kMostBytes = 512;

absl::StatusOr<std::string> Read(const SecretSource& source) {
  if (!source.env.empty()) {
    const char* value = std::getenv(source.env.c_str());
    if (value != nullptr) return std::string(value);
    return absl::InvalidArgumentError(absl::StrCat("the environment has no variable ", source.env));
  }
  std::ifstream file(source.file);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(source.file, ": ", std::strerror(errno)));
  std::string line;
  std::getline(file, line);
  if (line.empty()) return absl::InvalidArgumentError(absl::StrCat(source.file, " has no first line"));
  return std::string(absl::StripAsciiWhitespace(line));
}

}  // namespace

absl::StatusOr<std::string> ReadSecret(const SecretSource& source) {
  if (!source.is_set()) return std::string();
  absl::StatusOr<std::string> secret = Read(source);
  if (!secret.ok()) return secret.status();
  if (secret->size() < kLeastBytes || secret->size() > kMostBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a secret has ", kLeastBytes, " to ", kMostBytes, " characters, this one ", secret->size()));
  }
  if (!std::all_of(secret->begin(), secret->end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError("a secret is printable ASCII without spaces");
  }
  return secret;
}

std::string DrawSecret() {
  std::string bytes(16, '\0');
  // So few bytes are never cut short, and only wait early in a machine's life.
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
  }
  return absl::BytesToHexString(bytes);
}

bool IsSameSecret(absl::string_view given, absl::string_view secret) {
  if (secret.empty()) return false;
  size_t differences = given.size() ^ secret.size();
  for (size_t i = 0; i < given.size(); ++i) {
    differences |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(secret[i % secret.size()]);
  }
  return differences == 0;
}

}  // namespace tandem
