// C interface of the native kernels. Arrays are row-major, and float32 unless stated otherwise.
// Functions return one of the codes below; unless it is MRC_OK they have written nothing.
#ifndef MRC_KERNELS_H
#define MRC_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MRC_OK = 0, MRC_BAD_SIZE = 1, MRC_NULL_POINTER = 2, MRC_OUT_OF_MEMORY = 3 };

// Types of a feature map's values
enum { MRC_FLOAT32 = 0, MRC_FLOAT16 = 1, MRC_BFLOAT16 = 2 };

// A batch of feature maps and the group norm over them. `channels_last` 0: [count, channels, positions],
// 1: [count, positions, channels]. `input` and `output` have `type`, and may be the same on the CPU.
typedef struct {
  const void* input;
  void* output;
  int64_t count, channels, positions;
  int32_t channels_last, type;
  int32_t groups;         // divides channels
  float epsilon;
  const void* scale;      // [channels], the norm's weight: float32 on the CPU, of `type` in mrc_cuda.h
  const void* shift;      // [channels], its bias, likewise
  int32_t threads;        // of the CPU, at least 1; mrc_cuda.h does not read it
} mrc_feature_maps;

// Group norm of input + bias, bias [count, channels] or NULL, then SiLU if `silu`.
int mrc_group_norm_silu(const mrc_feature_maps* maps, const float* bias, int32_t silu);

// Weights of the reward block: matrices [outputs, inputs] as in torch.nn.Linear, each channels × channels; the
// rest is [channels].
typedef struct {
  const float *proj_in, *proj_in_bias;
  const float *norm1, *norm1_bias;
  const float *inner, *inner_bias;
  const float *outer, *outer_bias;
  const float *norm2, *norm2_bias;
  const float *proj_out, *proj_out_bias;
} mrc_reward_weights;

// The reward block (kernels/reward_block/reference.py) with the attention folded to gate
// [count, 8, channels], gate_bias [count, 8], base [count, channels], update [count, channels, 8].
// channels is a multiple of 32.
int mrc_reward_block(const mrc_feature_maps* maps, const mrc_reward_weights* weights, const float* gate,
                     const float* gate_bias, const float* base, const float* update);

#ifdef __cplusplus
}
#endif

#endif  // MRC_KERNELS_H
