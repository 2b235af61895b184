#include "engine/cpu/kernel_parts.h"

#define TANDEM_STRING_INNER(x) #x
#define TANDEM_STRING(x) TANDEM_STRING_INNER(x)

namespace tandem {
namespace TANDEM_KERNEL_VARIANT {

const Kernels& GetKernels() {
  static constexpr Kernels kernels = {TANDEM_STRING(TANDEM_KERNEL_VARIANT),
                                      QuantiseRow,
                                      QuantisedPanel,
                                      FloatPanel,
                                      Attention,
                                      RmsNorm,
                                      SiluMul,
                                      StoreKv};
  return kernels;
}

}  // namespace TANDEM_KERNEL_VARIANT
}  // namespace tandem
