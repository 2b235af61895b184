# tandem_library, tandem_plugin, tandem_program and tandem_test: the only ways a target is made.

add_library(tandem_flags INTERFACE)
target_compile_options(tandem_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wno-sign-compare;-Wno-missing-field-initializers>
  $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>)
target_include_directories(tandem_flags INTERFACE "${CMAKE_SOURCE_DIR}")
if(CMAKE_UNITY_BUILD)
  # What a file keeps to itself may be a member of a class of its own: no other file sees either.
  target_compile_options(tandem_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
endif()
set(TANDEM_SANITIZE "" CACHE STRING "address, thread, fuzzer or empty")
find_program(TANDEM_MOLD mold)
if(TANDEM_SANITIZE)
  # With ThreadSanitizer mold 1.10 may begin a segment in the midst of a page, which the loader refuses (ENOMEM), and
  # with libFuzzer it does not always end.
  target_link_options(tandem_flags INTERFACE -fuse-ld=gold)
elseif(TANDEM_MOLD)
  target_link_options(tandem_flags INTERFACE -fuse-ld=mold)
endif()

if(TANDEM_SANITIZE STREQUAL "address")
  target_compile_options(tandem_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(tandem_flags INTERFACE -fsanitize=address,undefined)
elseif(TANDEM_SANITIZE STREQUAL "thread")
  # -Wtsan: fences, which ThreadSanitizer does not model, stand beside a message through the kernel.
  target_compile_options(tandem_flags INTERFACE -fsanitize=thread -Wno-error=tsan)
  target_link_options(tandem_flags INTERFACE -fsanitize=thread)
  add_library(tandem_tsan_absl_mutex OBJECT "${CMAKE_CURRENT_LIST_DIR}/tsan_absl_mutex.cc")
  target_link_libraries(tandem_flags INTERFACE $<TARGET_OBJECTS:tandem_tsan_absl_mutex> absl::synchronization)
  foreach(symbol 4LockEv 6UnlockEv 5AwaitERKNS0_9ConditionE 16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE)
    target_link_options(tandem_flags INTERFACE -Wl,--wrap=_ZN4absl7debian35Mutex${symbol})
  endforeach()
endif()
if(TANDEM_SANITIZE STREQUAL "fuzzer")
  target_compile_options(tandem_flags INTERFACE -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined)
  target_link_options(tandem_flags INTERFACE -fsanitize=address,undefined)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(tandem_flags INTERFACE -Wthread-safety -Werror=thread-safety)
endif()

# tandem_library(name SRCS a.cc ... HDRS a.h ... DEPS target ...)
function(tandem_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;HDRS;DEPS" ${ARGN})
  add_library(tandem_${name} STATIC ${ARG_SRCS} ${ARG_HDRS})
  add_library(tandem::${name} ALIAS tandem_${name})
  target_link_libraries(tandem_${name} PUBLIC tandem_flags ${ARG_DEPS})
endfunction()

# tandem_plugin(name SRCS a.cc ...): build/.../lib/libtandem_name.so, which programs open by themselves.
function(tandem_plugin name)
  cmake_parse_arguments(ARG "" "" "SRCS" ${ARGN})
  add_library(tandem_${name} SHARED ${ARG_SRCS})
  set_target_properties(tandem_${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
endfunction()

# tandem_program(name SRCS main.cc DEPS target ...): build/.../bin/name
function(tandem_program name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE tandem_flags ${ARG_DEPS})
endfunction()

# tandem_test(name [SERIAL] LABELS unit SRCS a_test.cc ... DEPS target ...): each TEST is one ctest test; SERIAL ones
# run alone.
function(tandem_test name)
  if(NOT TANDEM_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "SERIAL" "TIMEOUT" "LABELS;SRCS;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 60)
  endif()
  if(TANDEM_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 4")
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE tandem_flags ${ARG_DEPS} GTest::gmock_main)
  target_compile_definitions(${name} PRIVATE
    TANDEM_SOURCE_DIR="${CMAKE_SOURCE_DIR}" TANDEM_BINARY_DIR="${CMAKE_BINARY_DIR}")
  # What the tests of a label need, as a target: tests_unit.
  foreach(label ${ARG_LABELS})
    if(NOT TARGET tests_${label})
      add_custom_target(tests_${label})
    endif()
    add_dependencies(tests_${label} ${name})
  endforeach()
  # UCX patches madvise, which crashes under ThreadSanitizer when a thread ends.
  set(environment)
  if(TANDEM_SANITIZE STREQUAL "thread")
    set(environment ENVIRONMENT "UCX_MEM_MMAP_HOOK_MODE=none")
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
    PROPERTIES ${environment} LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} RUN_SERIAL ${ARG_SERIAL})
endfunction()
