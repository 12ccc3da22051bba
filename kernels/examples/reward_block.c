// The reward block from C: no Python, no CUDA toolkit.
//
//     folder=$(python -c 'from mrc_edit.kernels.native import find; print(find("libmrc_cuda.so").parent)')
//     cc reward_block.c -I$folder/include -L$folder -Wl,-rpath,$folder -lmrc_cuda -ldl -o reward_block
//
// All weights are zero but the last bias, which is 2, so that the block adds 2. Exit status: 0 it did,
// 1 it did not, 2 it cannot run here, with the reason on stderr.

#include <dlfcn.h>
#include <mrc_cuda.h>
#include <stdio.h>
#include <stdlib.h>

enum { COUNT = 3, CHANNELS = 320, POSITIONS = 64 * 64, GROUPS = 32, HEADS = 8, SIZE = COUNT * POSITIONS * CHANNELS };
enum { ONE = 0x3C00, TWO = 0x4000, THREE = 0x4200 };  // bits of float16

static void stop_on(int status) {
  if (!status) return;
  fprintf(stderr, "reward_block: %s\n", mrc_cuda_error_string(status));
  exit(2);
}

static void* driver;

// Call a function of the CUDA driver; with the CUDA toolkit include cuda.h instead
#define CUDA(name, types, ...)                           \
  do {                                                   \
    int(*function) types;                                \
    *(void**)&function = dlsym(driver, #name);           \
    if (!function) stop_on(MRC_CUDA_OLD_DRIVER);         \
    const int error = function(__VA_ARGS__);             \
    if (error) stop_on(MRC_CUDA_DRIVER + error);         \
  } while (0)

// Device memory of `count` times the 16 bits `value`
static void* filled(size_t count, unsigned short value) {
  unsigned long long address = 0;
  CUDA(cuMemAlloc_v2, (unsigned long long*, size_t), &address, 2 * count);
  CUDA(cuMemsetD16_v2, (unsigned long long, unsigned short, size_t), address, value, count);
  return (void*)address;
}

int main(void) {
  stop_on(mrc_cuda_status());
  driver = dlopen("libcuda.so.1", RTLD_NOW);  // there, as the status says
  void* context = NULL;
  CUDA(cuDevicePrimaryCtxRetain, (void**, int), &context, 0);
  CUDA(cuCtxSetCurrent, (void*), context);

  void* output = filled(SIZE, 0);
  void* matrix = filled(CHANNELS * CHANNELS, 0);
  void* zeros = filled(2 * COUNT * CHANNELS * HEADS, 0);
  const mrc_feature_maps maps = {
      .input = filled(SIZE, ONE), .output = output, .count = COUNT, .channels = CHANNELS, .positions = POSITIONS,
      .channels_last = 1, .type = MRC_FLOAT16, .groups = GROUPS, .epsilon = 1e-6f, .scale = zeros, .shift = zeros};
  const mrc_cuda_reward_weights weights = {
      .proj_in = matrix, .proj_in_bias = zeros, .norm1 = zeros, .norm1_bias = zeros,
      .inner = matrix, .inner_bias = zeros, .outer = matrix, .outer_bias = zeros,
      .norm2 = zeros, .norm2_bias = zeros, .proj_out = matrix, .proj_out_bias = filled(CHANNELS, TWO)};
  void* workspace = filled((size_t)mrc_cuda_reward_block_workspace(&maps) / 2, 0);
  stop_on(mrc_cuda_reward_block(&maps, &weights, zeros, zeros, zeros, zeros, workspace, NULL));

  unsigned short* result = malloc(sizeof *result * SIZE);
  if (!result) stop_on(MRC_OUT_OF_MEMORY);
  CUDA(cuMemcpyDtoH_v2, (void*, unsigned long long, size_t), result, (unsigned long long)output, sizeof *result * SIZE);
  int wrong = 0;
  for (int i = 0; i < SIZE; ++i) wrong += result[i] != THREE;
  printf("%d of %d values are wrong\n", wrong, SIZE);
  free(result);
  return wrong > 0;
}
