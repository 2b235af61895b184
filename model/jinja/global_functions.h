#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace tandem::jinja {

// namespace, dict, range, raise_exception and strftime_now, as every template knows them.
std::vector<std::pair<std::string, Value>> GlobalFunctions();

}  // namespace tandem::jinja
