// The few functions of the CUDA driver that the pack calls, looked up at the first call: no CUDA header, nothing
// to link. Handles are pointers, CUdevice and CUresult are int; tests/kernels/test_pack.py checks the signatures
// against cuda.h.
#ifndef MRC_CUDA_DRIVER_H
#define MRC_CUDA_DRIVER_H

#include <dlfcn.h>

#include "mrc_cuda.h"

#define MRC_DRIVER_FUNCTIONS(X)                                                                          \
  X(cuInit, unsigned)                                                                                    \
  X(cuGetErrorString, int, const char**)                                                                 \
  X(cuCtxGetDevice, int*)                                                                                \
  X(cuDeviceGetAttribute, int*, int, int)                                                                \
  X(cuLibraryLoadData, void**, const void*, int*, void**, unsigned, int*, void**, unsigned)              \
  X(cuLibraryGetKernel, void**, void*, const char*)                                                      \
  X(cuKernelSetAttribute, int, int, void*, int)                                                          \
  X(cuLaunchKernel, void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream_st*, void**, \
    void**)

// Values of cuda.h
constexpr int kInvalidContext = 201;                              // CUDA_ERROR_INVALID_CONTEXT
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;       // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
constexpr int kMaxDynamicSharedSize = 8;                          // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

struct Driver {
  int status;  // MRC_OK, or why nothing can be called
#define MRC_DECLARE(name, ...) int (*name)(__VA_ARGS__);
  MRC_DRIVER_FUNCTIONS(MRC_DECLARE)
#undef MRC_DECLARE
};

static Driver load_driver() {
  Driver driver{};
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    driver.status = MRC_CUDA_NO_DRIVER;
    return driver;
  }
#define MRC_FIND(name, ...)                                                                             \
  driver.name = reinterpret_cast<int (*)(__VA_ARGS__)>(dlsym(library, #name));                          \
  if (!driver.name) driver.status = MRC_CUDA_OLD_DRIVER;
  MRC_DRIVER_FUNCTIONS(MRC_FIND)
#undef MRC_FIND
  if (driver.status == MRC_OK)
    if (const int error = driver.cuInit(0)) driver.status = MRC_CUDA_DRIVER + error;
  return driver;
}

static const Driver& cuda_driver() {
  static const Driver driver = load_driver();
  return driver;
}

#endif  // MRC_CUDA_DRIVER_H
