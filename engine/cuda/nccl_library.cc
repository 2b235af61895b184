#include "engine/cuda/nccl_library.h"

#include <dlfcn.h>

#include <type_traits>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr char kName[] = "libnccl.so.2";

absl::StatusOr<NcclLibrary> Load() {
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("parallelism.tp on GPUs needs NCCL, which cannot be loaded: ", dlerror(),
                                               "; install it, or name its folder in LD_LIBRARY_PATH"));
  }
  NcclLibrary functions;
  absl::Status status;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) status = absl::UnavailableError(absl::StrCat(kName, " has no ", name));
  };
  find(functions.make_id, "ncclGetUniqueId");
  find(functions.join, "ncclCommInitRank");
  find(functions.leave, "ncclCommAbort");
  find(functions.all_reduce, "ncclAllReduce");
  find(functions.error_text, "ncclGetErrorString");
  if (!status.ok()) return status;
  return functions;
}

}  // namespace

absl::StatusOr<const NcclLibrary*> LoadNccl() {
  static const absl::StatusOr<NcclLibrary> library = Load();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace tandem
