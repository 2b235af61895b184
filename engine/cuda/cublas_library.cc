#include "engine/cuda/cublas_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr char kName[] = "libcublasLt.so.13";

absl::StatusOr<CublasLibrary> Load() {
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("device cuda needs cuBLAS of CUDA 13, which cannot be loaded: ",
                                               dlerror(), "; install it, or name its folder in LD_LIBRARY_PATH"));
  }
  CublasLibrary functions;
  absl::Status status;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) status = absl::UnavailableError(absl::StrCat(kName, " has no ", name));
  };
  find(functions.create, "cublasLtCreate");
  find(functions.destroy, "cublasLtDestroy");
  find(functions.status_name, "cublasLtGetStatusName");
  find(functions.matmul, "cublasLtMatmul");
  find(functions.find_algorithms, "cublasLtMatmulAlgoGetHeuristic");
  find(functions.operation_create, "cublasLtMatmulDescCreate");
  find(functions.operation_destroy, "cublasLtMatmulDescDestroy");
  find(functions.operation_set, "cublasLtMatmulDescSetAttribute");
  find(functions.layout_create, "cublasLtMatrixLayoutCreate");
  find(functions.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(functions.preference_create, "cublasLtMatmulPreferenceCreate");
  find(functions.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(functions.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  if (!status.ok()) return status;
  return functions;
}

}  // namespace

absl::StatusOr<const CublasLibrary*> LoadCublas() {
  static const absl::StatusOr<CublasLibrary> library = Load();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace tandem
