#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace tandem {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// One key and value of a log line. The value is anything that absl::StrCat takes.
struct LogField {
  template <typename T>
  LogField(absl::string_view field_key, const T& field_value) : key(field_key), value(absl::StrCat(field_value)) {}
  absl::string_view key;
  std::string value;
};

// Writes "time level process message key=value ..." as one line to standard error; values with
// spaces are quoted. Requests are always named by the key "request". Thread-safe.
void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields = {});

inline void LogInfo(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(absl::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}

// Set once at the start of a program, before threads.
void SetLogProcessName(absl::string_view name);

}  // namespace tandem
