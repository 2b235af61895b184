# Every library that Tandem uses, in one place. All come from Debian 12 or PyPI: see
# deploy/debian_packages.txt and deploy/requirements.txt for names and versions.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

find_program(TANDEM_CCACHE ccache)
if(TANDEM_CCACHE)
  # Paths below the source folder count as relative ones: what two presets compile alike is compiled once.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1 "${TANDEM_CCACHE}")
endif()

find_package(Threads REQUIRED)
find_package(absl CONFIG REQUIRED)          # 20220623.1
find_package(Protobuf REQUIRED)             # 3.21.12
find_package(gRPC CONFIG REQUIRED)          # 1.51.1
find_package(yaml-cpp CONFIG REQUIRED)      # 0.7.0
find_package(prometheus-cpp CONFIG REQUIRED) # 1.0.1
find_package(Boost 1.81 REQUIRED COMPONENTS json)
find_package(OpenSSL 3.0 REQUIRED)

find_path(PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY pcre2-8 REQUIRED)
add_library(tandem_pcre2 INTERFACE)
target_include_directories(tandem_pcre2 INTERFACE "${PCRE2_INCLUDE_DIR}")
target_link_libraries(tandem_pcre2 INTERFACE "${PCRE2_LIBRARY}")

# llguidance 1.9.1 of the PyPI wheel llguidance: a Python extension whose C interface is opened at run time.
if(NOT LLGUIDANCE_LIBRARY)
  file(GLOB LLGUIDANCE_LIBRARY "${CMAKE_SOURCE_DIR}/build/python/lib/python3*/site-packages/llguidance/_lib.abi3.so")
endif()
if(NOT LLGUIDANCE_LIBRARY)
  message(FATAL_ERROR "no llguidance in build/python; run deploy/install_dependencies")
endif()

# UCX 1.22 of the PyPI wheel libucx-cu13; a site that needs RDMA sets ucx_ROOT to its own build.
if(TANDEM_WITH_UCX)
  if(NOT ucx_ROOT)
    file(GLOB ucx_ROOT "${CMAKE_SOURCE_DIR}/build/python/lib/python3*/site-packages/libucx")
  endif()
  find_package(ucx CONFIG REQUIRED HINTS "${ucx_ROOT}")
endif()

# CUDA 13.0: the wheels of deploy/requirements_cuda.txt, or what CMAKE_CUDA_COMPILER or CUDACXX
# names. Linked in statically, and
# without libcuda, so that programs start where there is no driver.
if(TANDEM_WITH_CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    file(GLOB compilers "${CMAKE_SOURCE_DIR}/build/python/lib/python3*/site-packages/nvidia/cu13/bin/nvcc")
    if(NOT compilers)
      message(FATAL_ERROR "no CUDA compiler; run deploy/install_dependencies --cuda")
    endif()
    list(GET compilers 0 CMAKE_CUDA_COMPILER)
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a-real 100a-real)  # Hopper (H100, H200), Blackwell (B200, GB200).
  endif()
  set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 knows of no later one; only kernels are CUDA sources.
  if(TANDEM_CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${TANDEM_CCACHE}")
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit 13.0 REQUIRED)  # cuBLASLt is opened at run time: of its package, headers are enough.
  # NCCL is opened at run time, too.
  if(NOT nccl_ROOT)
    file(GLOB nccl_ROOT "${CMAKE_SOURCE_DIR}/build/python/lib/python3*/site-packages/nvidia/nccl")
  endif()
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS "${nccl_ROOT}/include" REQUIRED)
  if(NOT cutlass_ROOT)
    file(GLOB cutlass_ROOT "${CMAKE_SOURCE_DIR}/build/python/lib/python3*/site-packages/cutlass_library/source")
  endif()
  find_path(CUTLASS_INCLUDE_DIR cute/arch/mma_sm90_gmma.hpp HINTS "${cutlass_ROOT}/include" REQUIRED)
endif()

if(TANDEM_BUILD_TESTS)
  find_package(GTest REQUIRED)              # 1.12.1
  find_package(benchmark REQUIRED)          # 1.7.1
  include(GoogleTest)
endif()
