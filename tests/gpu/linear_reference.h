#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "engine/cuda/skinny_linear.h"
#include "tests/gpu/device_values.h"

namespace tandem {

// A linear layer, as SkinnyLinearArguments has it.
struct LinearCase {
  int rows, in, out;
  bool norm = false, gated = false, add = false, bias = false, is_float = false;

  int columns() const { return gated ? out / 2 : out; }
};

// What a layer needs beside its weights, random, and what it gives.
struct LinearValues {
  // `in_scale`, `norm_scale`: their standard deviations.
  LinearValues(const LinearCase& c, float in_scale, float norm_scale, std::mt19937& random)
      : epsilon(in_scale * in_scale / 2),  // Enough to be seen.
        in(RandomBf16(size_t(c.rows) * c.in, in_scale, random)),
        norm(RandomBf16(c.in, norm_scale, random)),
        bias(RandomBf16(c.out, 1, random)),
        out(RandomBf16(size_t(c.rows) * c.columns(), 1, random)),
        floats(std::vector<float>(size_t(c.rows) * c.columns(), 1e9f)) {}
  // All but the weights.
  SkinnyLinearArguments Arguments(const LinearCase& c) {
    SkinnyLinearArguments a;
    a.in = in.device();
    if (c.norm) a.norm = norm.device();
    if (c.bias) a.bias = bias.device();
    a.epsilon = epsilon;
    a.out = c.is_float ? static_cast<void*>(floats.device()) : out.device();
    a.is_float = c.is_float;
    a.add = c.add;
    a.is_gated = c.gated;
    a.rows = c.rows;
    a.out_features = c.out;
    a.in_features = c.in;
    return a;
  }
  // [rows][columns()] of weights [out][in], in double precision but where the kernels round.
  std::vector<double> Wanted(const LinearCase& c, const std::vector<double>& weights) const {
    std::vector<double> wanted, x(c.in);
    for (int row = 0; row < c.rows; ++row) {
      double squares = 0;
      for (int k = 0; k < c.in; ++k) squares += std::pow(Value(in.host[size_t(row) * c.in + k]), 2);
      for (int k = 0; k < c.in; ++k) {
        x[k] = Value(in.host[size_t(row) * c.in + k]);
        if (!c.norm) continue;
        const double rounded = Value(__float2bfloat16(static_cast<float>(x[k] * Value(norm.host[k]))));
        x[k] = rounded / std::sqrt(squares / c.in + epsilon);
      }
      const auto dot = [&](int feature) {
        double sum = 0;
        for (int k = 0; k < c.in; ++k) sum += x[k] * weights[size_t(feature) * c.in + k];
        return sum;
      };
      for (int column = 0; column < c.columns(); ++column) {
        double value = dot(column);
        if (c.gated) value = value / (1 + std::exp(-value)) * dot(c.columns() + column);
        if (c.bias) value += Value(bias.host[column]);
        if (c.add) value += Value(out.host[size_t(row) * c.columns() + column]);
        wanted.push_back(value);
      }
    }
    return wanted;
  }
  void Expect(const LinearCase& c, const std::vector<double>& weights) {
    if (c.is_float) {
      ExpectNear(floats.Read(), Wanted(c, weights), 1e-4, "floats");
    } else {
      ExpectNear(out.Read(), Wanted(c, weights), 0.01, "out");
    }
  }
  float epsilon;
  Both<Bf16> in, norm, bias, out;
  Both<float> floats;
};

}  // namespace tandem
