// A CUDA driver that has no GPU and tells a listener of every launch; cuda.h holds its signatures to NVIDIA's.
#include <cuda.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fake_capability = 80, fake_device = 0, fake_error = 0, fake_loads = 0;
char fake_failing[64] = "";  // the function that returns fake_error
// numbers: grid, block, shared memory, the most shared memory the kernel was allowed
void (*fake_listener)(const void* image, const char* function, const int* numbers, void* stream, void** parameters);

struct kernel {
  const void* image;
  const char* name;
  int shared;
};

static CUresult result(const char* name) { return strcmp(name, fake_failing) ? CUDA_SUCCESS : (CUresult)fake_error; }

CUresult cuInit(unsigned flags) {
  const char* capability = getenv("FAKE_CAPABILITY");
  if (capability) fake_capability = atoi(capability);
  return result("cuInit");
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "no kernel image for the device" : "another error";
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = fake_device;
  return result("cuCtxGetDevice");
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (device != fake_device) return CUDA_ERROR_INVALID_DEVICE;
  if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = fake_capability / 10;
  if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = fake_capability % 10;
  return result("cuDeviceGetAttribute");
}
CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option* options, void** values, unsigned count,
                           CUlibraryOption* library_options, void** library_values, unsigned library_count) {
  usleep(2000);  // as it takes its time: another thread may come meanwhile
  ++fake_loads;
  *library = (CUlibrary)code;
  return count || library_count ? CUDA_ERROR_INVALID_VALUE : result("cuLibraryLoadData");
}
CUresult cuLibraryGetKernel(CUkernel* made, CUlibrary library, const char* name) {
  struct kernel* kernel = malloc(sizeof *kernel);
  *kernel = (struct kernel){library, name, 48 << 10};
  *made = (CUkernel)kernel;
  return result("cuLibraryGetKernel");
}
CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) ((struct kernel*)kernel)->shared = value;
  return device == fake_device ? result("cuKernelSetAttribute") : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream stream, void** parameters, void** extra) {
  const struct kernel* kernel = (const struct kernel*)function;
  const int numbers[] = {x, y, z, block_x, block_y, block_z, shared, kernel->shared};
  if (result("cuLaunchKernel")) return result("cuLaunchKernel");
  if (fake_listener) fake_listener(kernel->image, kernel->name, numbers, stream, parameters);
  return extra ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

// For the example
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = (CUcontext)&fake_device;
  return result("cuDevicePrimaryCtxRetain");
}
CUresult cuCtxSetCurrent(CUcontext context) { return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
  *address = (CUdeviceptr)aligned_alloc(256, (size + 255) / 256 * 256);
  return result("cuMemAlloc");
}
CUresult cuMemsetD16(CUdeviceptr address, unsigned short value, size_t count) {
  for (size_t i = 0; i < count; ++i) ((unsigned short*)address)[i] = value;
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH(void* target, CUdeviceptr source, size_t size) {
  memcpy(target, (const void*)source, size);
  return CUDA_SUCCESS;
}
