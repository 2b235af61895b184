#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/constraint/format_thread.h"

namespace {

tandem::FormatThread& Thread() {
  static const auto checkpoint = *tandem::Checkpoint::Open(TANDEM_SOURCE_DIR "/tests/golden/tiny/llama3_f32");
  static tandem::FormatThread thread(*checkpoint);
  return thread;
}

}  // namespace

// A hostile format, compiled and followed for some tokens. The first byte says of which kind it is, and which of the
// tokens that may come is taken.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  tandem::OutputFormat format;
  format.kind = static_cast<tandem::OutputFormat::Kind>(data[0] % 3);
  format.reasoning = static_cast<tandem::OutputFormat::Reasoning>(data[0] / 3 % 3);
  format.text.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto job = Thread().Start(std::make_shared<const tandem::OutputFormat>(std::move(format)), {});
  std::optional<tandem::FormatJob::Result> result;
  while (!(result = job->TakeResult()).has_value()) std::this_thread::yield();
  if (!result->ok()) return 0;
  tandem::TokenConstraint& constraint = ***result;
  for (int i = 0; i < 20; ++i) {
    auto mask = constraint.Allowed();
    if (!mask.ok()) return 0;
    std::vector<tandem::TokenId> allowed;
    for (size_t token = 0; token < 32 * mask->size(); ++token) {
      if ((*mask)[token / 32] >> (token % 32) & 1) allowed.push_back(static_cast<tandem::TokenId>(token));
    }
    if (allowed.empty()) abort();  // Nothing could be sampled.
    if (!constraint.Accept({allowed[(data[0] + i) % allowed.size()]}).ok()) return 0;
  }
  return 0;
}
