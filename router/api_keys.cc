#include "router/api_keys.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/secret.h"
#include "common/status_macros.h"

namespace tandem {

absl::StatusOr<ApiKeys> ApiKeys::Load(const std::vector<ApiKeySettings>& settings) {
  ApiKeys keys;
  for (const ApiKeySettings& one : settings) {
    absl::StatusOr<std::string> key = ReadSecret(one.key);
    absl::Status status = key.status();
    if (status.ok() && std::find(keys.keys_.begin(), keys.keys_.end(), *key) != keys.keys_.end()) {
      status = absl::InvalidArgumentError("another one has the same key");
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(one.key.where, ": router.api_keys: ", one.name, ": ", status.message()));
    }
    keys.tenants_.push_back(one);
    keys.keys_.push_back(*std::move(key));
  }
  return keys;
}

absl::StatusOr<Tenant> ApiKeys::Check(absl::string_view authorization) const {
  if (keys_.empty()) return kAnyone;
  constexpr absl::string_view kScheme = "Bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
    return absl::UnauthenticatedError("an API key is needed: Authorization: Bearer KEY");
  }
  const absl::string_view given = absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
  Tenant tenant = kAnyone;
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (IsSameSecret(given, keys_[i])) tenant = static_cast<Tenant>(i);
  }
  if (tenant == kAnyone) return absl::UnauthenticatedError("the API key is not known here");
  return tenant;
}

absl::Status ApiKeys::CheckOperator(absl::string_view authorization) const {
  ASSIGN_OR_RETURN(const Tenant tenant, Check(authorization));
  if (tenant == kAnyone || tenants_[tenant].is_operator) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("the key of ", tenants_[tenant].name, " is no operator's"));
}

}  // namespace tandem
