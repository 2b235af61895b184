#include "engine/constraint/llguidance.h"

#include <dlfcn.h>

#include <type_traits>

#include "absl/strings/str_cat.h"

namespace tandem::llguidance {
namespace {

constexpr char kPythonStubs[] = "libtandem_python_stubs.so";
constexpr char kName[] = "libllguidance.so";

absl::Status CannotLoad(const char* name) {
  return absl::UnavailableError(absl::StrCat("answers of a given format need ", name, ", which cannot be loaded: ",
                                             dlerror(), "; it belongs beside the program's other libraries"));
}

absl::StatusOr<Library> LoadNow() {
  // The library is a Python extension that can also be used from C. Its other half wants the interpreter's symbols.
  if (dlopen(kPythonStubs, RTLD_NOW | RTLD_GLOBAL) == nullptr) return CannotLoad(kPythonStubs);
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return CannotLoad(kName);
  Library functions;
  absl::Status status;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) status = absl::UnavailableError(absl::StrCat(kName, " has no ", name));
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
