#include "model/jinja/global_functions.h"

#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace tandem::jinja {
namespace {

absl::StatusOr<Value> Range(const Arguments& arguments) {
  std::vector<int64_t> numbers;
  for (const Value& value : arguments.positional) {
    if (value.As<int64_t>() == nullptr) return absl::InvalidArgumentError("range needs whole numbers");
    numbers.push_back(*value.As<int64_t>());
  }
  if (numbers.empty() || numbers.size() > 3) return absl::InvalidArgumentError("range needs one to three numbers");
  int64_t begin = numbers.size() > 1 ? numbers[0] : 0, end = numbers.size() > 1 ? numbers[1] : numbers[0];
  int64_t step = numbers.size() > 2 ? numbers[2] : 1;
  if (step == 0) return absl::InvalidArgumentError("range needs a step that is not 0");
  std::vector<Value> values;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (values.size() >= 100'000) return absl::InvalidArgumentError("range of over 100000 numbers");
    values.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MakeList(std::move(values));
}

}  // namespace

std::vector<std::pair<std::string, Value>> GlobalFunctions() {
  std::vector<std::pair<std::string, Value>> globals;
  globals.emplace_back("namespace", MakeCallable([](const Arguments& arguments) -> absl::StatusOr<Value> {
                         Value value = MakeDict({});
                         value.AsDict()->is_namespace = true;
                         for (const auto& [name, item] : arguments.named) value.AsDict()->Set(Value(name), item);
                         return value;
                       }));
  globals.emplace_back("dict", MakeCallable([](const Arguments& arguments) -> absl::StatusOr<Value> {
                         Value value = MakeDict({});
                         for (const auto& [name, item] : arguments.named) value.AsDict()->Set(Value(name), item);
                         return value;
                       }));
  globals.emplace_back("range", MakeCallable(Range));
  globals.emplace_back(
      "raise_exception", MakeCallable([](const Arguments& arguments) -> absl::StatusOr<Value> {
        const Value* message = arguments.Get(0, "message");
        return absl::InvalidArgumentError(message == nullptr ? "the template refused the input" : ToText(*message));
      }));
  globals.emplace_back("strftime_now", MakeCallable([](const Arguments& arguments) -> absl::StatusOr<Value> {
                         const Value* format = arguments.Get(0, "format");
                         return Value(absl::FormatTime(format == nullptr ? "%Y-%m-%d" : ToText(*format), absl::Now(),
                                                       absl::LocalTimeZone()));
                       }));
  return globals;
}

}  // namespace tandem::jinja
