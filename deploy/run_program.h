#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tandem {

struct ProgramResult {
  int exit_code = 0;   // 128 plus the signal's number where one ended the program.
  std::string output;  // Standard output and error, as they came.
};

// Runs a program to its end: arguments[0] is its path. UNAVAILABLE when it cannot be started; DEADLINE_EXCEEDED, and
// the program is killed, when it takes longer than `timeout`.
absl::StatusOr<ProgramResult> RunProgram(const std::vector<std::string>& arguments, absl::Duration timeout);

}  // namespace tandem
