#include <vector>

#include "model/quantised_weights.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int64_t kMostColumns = 1 << 16;
  auto tensors = tandem::SafetensorsFile::Parse({data, size});
  if (!tensors.ok()) return 0;
  tandem::QuantisedWeights weights = *tandem::QuantisedWeights::OfConfig("{}");
  for (const tandem::TensorView& tensor : *tensors) weights.Take(tensor);
  auto joined = weights.Join();
  if (!joined.ok()) return 0;
  for (const tandem::TensorView& weight : *joined) {
    if (weight.columns() > kMostColumns) continue;
    std::vector<float> row(weight.columns());
    tandem::DequantizeRow(weight, weight.rows() - 1, weight.columns(), row.data());
  }
  return 0;
}
