#include "engine/constraint/llguidance.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace tandem::llguidance {
namespace {

constexpr char kName[] = "libllguidance.so";

absl::StatusOr<void*> Open(const char* name, int flags) {
  // By its path: with sanitizers it is not this program that dlopen takes for its caller.
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string path = program.parent_path().parent_path() / "lib" / name;
  for (const std::string& file : {path, std::string(name)}) {
    if (void* library = dlopen(file.c_str(), flags); library != nullptr) return library;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("response_format: needs a library that cannot be loaded: ", dlerror(), "; it belongs at ", path));
}

absl::StatusOr<Library> LoadNow() {
  // The library is a Python extension that can also be used from C. Its other half wants the interpreter's symbols.
  RETURN_IF_ERROR(Open("libtandem_python_stubs.so", RTLD_NOW | RTLD_GLOBAL).status());
  ASSIGN_OR_RETURN(void* library, Open(kName, RTLD_NOW | RTLD_LOCAL));
  Library functions;
  absl::Status status;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) {
      status = absl::FailedPreconditionError(absl::StrCat("response_format: ", kName, " has no ", name));
    }
  };
  find(functions.new_tokenizer, "llg_new_tokenizer_v2");
  find(functions.free_tokenizer, "llg_free_tokenizer");
  find(functions.set_defaults, "llg_constraint_init_set_defaults");
  find(functions.new_matcher, "llg_new_matcher");
  find(functions.free_matcher, "llg_free_matcher");
  find(functions.matcher_error, "llg_matcher_get_error");
  find(functions.mask_bytes, "llg_matcher_get_mask_byte_size");
  find(functions.compute_mask, "llg_matcher_compute_mask_into");
  find(functions.consume, "llg_matcher_consume_tokens");
  if (!status.ok()) return status;
  return functions;
}

}  // namespace

absl::StatusOr<const Library*> Load() {
  static const absl::StatusOr<Library> library = LoadNow();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace tandem::llguidance
