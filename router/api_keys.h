#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/topology.h"

namespace tandem {

// Who calls, as an index into ApiKeys::tenants(); kAnyone where there are no keys.
using Tenant = int;
constexpr Tenant kAnyone = -1;

// The keys that clients call with. Without any, everybody may do everything.
//
// Thread-safety: immutable after Load.
class ApiKeys {
 public:
  ApiKeys() = default;
  // Reads the keys from where the settings say. INVALID_ARGUMENT with file and line of the topology: a file or variable
  // that is not there, a key that is too short or is another one's, too.
  static absl::StatusOr<ApiKeys> Load(const std::vector<ApiKeySettings>& settings);

  // Whose key stands in "Bearer KEY". Takes as long for a wrong key as for a right one. UNAUTHENTICATED.
  absl::StatusOr<Tenant> Check(absl::string_view authorization) const;
  // As Check, for what changes the cluster. PERMISSION_DENIED.
  absl::Status CheckOperator(absl::string_view authorization) const;
  // By Tenant.
  const std::vector<ApiKeySettings>& tenants() const { return tenants_; }

 private:
  std::vector<ApiKeySettings> tenants_;
  std::vector<std::string> keys_;  // By Tenant.
};

}  // namespace tandem
