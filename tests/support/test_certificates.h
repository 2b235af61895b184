#pragma once

#include <memory>
#include <string>
#include <vector>

namespace tandem {

// Signs certificates for tests; made anew each time, valid for a day.
//
// Thread-safety: not thread-safe. Ownership: owns its key and certificate.
class TestAuthority {
 public:
  // `signer`: of its own certificate; null: itself.
  explicit TestAuthority(const std::string& name, const TestAuthority* signer = nullptr);
  ~TestAuthority();

  struct Signed {
    std::string certificate, key;  // PEM
  };
  // Of these DNS names and, where they look like one, IPv4 addresses. `is_over`: since an hour.
  Signed Sign(const std::vector<std::string>& names, bool is_over = false) const;
  // Its own certificate, in PEM.
  const std::string& certificate() const { return certificate_; }

 private:
  struct Parts;
  const std::unique_ptr<Parts> parts_;
  std::string certificate_;
};

}  // namespace tandem
