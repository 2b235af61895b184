#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tandem {

struct ProgramResult {
  int exit_code = 0;   // 128 plus the signal's number where one ended the program.
  std::string output;  // Standard output.
  std::string errors;  // Standard error.
};

// Runs a program to its end: arguments[0] is its path. UNAVAILABLE when it cannot be started; DEADLINE_EXCEEDED, and
// the program is killed, when it takes longer than `timeout`. INTERNAL: the system does not say how it ended. What
// programs that outlive it write is not waited for.
absl::StatusOr<ProgramResult> RunProgram(const std::vector<std::string>& arguments, absl::Duration timeout);

}  // namespace tandem
