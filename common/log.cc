#include "common/log.h"

#include <unistd.h>

#include <atomic>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace tandem {
namespace {

std::string& ProcessName() {
  static std::string name = "tandem";
  return name;
}

std::atomic<LogLevel> minimum_level = LogLevel::kInfo;

absl::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      return "ERROR";
  }
  return "";
}

}  // namespace

void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields) {
  if (level < minimum_level.load(std::memory_order_relaxed)) return;
  std::string line = absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()), " ",
                                  LevelName(level), " ", ProcessName(), " ", message);
  for (const LogField& field : fields) {
    bool plain = !field.value.empty() && field.value.find_first_of(" \"\n\t=\\") == std::string::npos;
    absl::StrAppend(&line, " ", field.key, "=");
    if (plain) {
      absl::StrAppend(&line, field.value);
    } else {
      absl::StrAppend(&line, "\"", absl::CEscape(field.value), "\"");
    }
  }
  line += '\n';
  // One write, so that lines of several threads do not mix. Nothing sensible can be done on
  // failure.
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void SetLogProcessName(absl::string_view name) { ProcessName() = std::string(name); }

}  // namespace tandem
