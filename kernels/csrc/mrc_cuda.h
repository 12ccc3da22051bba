// C interface of the CUDA kernels compiled ahead of time (libmrc_cuda.so, docs/kernels.md). The library loads
// on any machine and looks for the CUDA driver, 12.0 or later, at the first call. Arrays are row-major in
// device memory, at multiples of 16 bytes. A CUDA context must be current in the calling thread.
//
// Functions put work on `stream` (NULL: the default stream) and return at once. Unless they return MRC_OK they
// have launched nothing; only after MRC_CUDA_DRIVER the first of two launches may be under way. They may be called
// from any thread. A function's first call loads its code: make that call before you capture a stream.
#ifndef MRC_CUDA_H
#define MRC_CUDA_H

#include "mrc_kernels.h"  // codes and types

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;  // a CUstream or cudaStream_t points to one

enum {
  MRC_CUDA_NOT_IN_PACK = 16,  // no code for this GPU, type, width or layout
  MRC_CUDA_BAD_POINTER = 17,  // not a multiple of 16 bytes, or the output is the input
  MRC_CUDA_NO_DRIVER = 18,
  MRC_CUDA_OLD_DRIVER = 19,
  MRC_CUDA_NO_CONTEXT = 20,
  MRC_CUDA_DRIVER = 1000  // plus the driver's own CUresult
};

// What a code means; do not free the string.
const char* mrc_cuda_error_string(int status);

// MRC_OK if there are a driver and a GPU.
int mrc_cuda_status(void);

// As mrc_reward_weights, all of the maps' type.
typedef struct {
  const void *proj_in, *proj_in_bias;
  const void *norm1, *norm1_bias;
  const void *inner, *inner_bias;
  const void *outer, *outer_bias;
  const void *norm2, *norm2_bias;
  const void *proj_out, *proj_out_bias;
} mrc_cuda_reward_weights;

// Bytes of device memory for mrc_cuda_reward_block's intermediate results.
int64_t mrc_cuda_reward_block_workspace(const mrc_feature_maps* maps);

// As mrc_reward_block, on channels-last maps. gate [count, 8, channels] and update [count, channels, 8] are of the
// maps' type. channels is 32 or 320, a group has at most 16; `output` is not `input`.
int mrc_cuda_reward_block(const mrc_feature_maps* maps, const mrc_cuda_reward_weights* weights,
                          const void* gate, const float* gate_bias, const float* base, const void* update,
                          void* workspace, struct CUstream_st* stream);

// SiLU of the group norm of input + bias, on channels-last maps; bias is [count, channels] of the maps' type, or
// NULL. channels is a multiple of 16, a group has at most 128.
int mrc_cuda_group_norm_silu(const mrc_feature_maps* maps, const void* bias, struct CUstream_st* stream);

// One sampler step (kernels/sampler_step/reference.py). noise [batch, size] and sample [inputs, 2 * size], whose
// first halves are written, are of `type`, the rest is float32: latents and denoised [batch, size], updated
// in place, fresh_noise [batch, size] or NULL, coefficients [4], denoised_coefficients [2], input_scale [1]; item
// [inputs] is below batch. size is a multiple of 16. coefficients, denoised_coefficients, input_scale and item
// may lie at any address.
int mrc_cuda_sampler_step(int32_t type, const void* noise, float* latents, float* denoised, const float* fresh_noise,
                          int64_t batch, int64_t size, const float* coefficients, const float* denoised_coefficients,
                          const float* input_scale, const int64_t* item, int64_t inputs, void* sample,
                          struct CUstream_st* stream);

#ifdef __cplusplus
}
#endif

#endif  // MRC_CUDA_H
