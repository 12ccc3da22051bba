// C interface of the native kernels. Arrays are row-major float32 unless said otherwise. Functions
// return one of the codes below; on any but MRC_OK nothing was written.
#ifndef MRC_KERNELS_H
#define MRC_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MRC_OK = 0, MRC_BAD_SIZE = 1, MRC_NULL_POINTER = 2, MRC_OUT_OF_MEMORY = 3 };

// Types of a feature map's values
enum { MRC_FLOAT32 = 0, MRC_FLOAT16 = 1, MRC_BFLOAT16 = 2 };

// A batch of feature maps and what shall become of it. `channels_last` 0: [count, channels, positions],
// 1: [count, positions, channels]. `input` and `output` have `type`, and may be the same.
typedef struct {
  const void* input;
  void* output;
  int64_t count, channels, positions;
  int32_t channels_last, type;
  int32_t groups;         // of the group norm; divides channels
  float epsilon;          // of the group norm
  const float* scale;     // [channels], its weight
  const float* shift;     // [channels], its bias
  int32_t threads;        // at least 1
} mrc_feature_maps;

// noise [rows, size], guidance [batch, rows], latents and data [batch, size] (updated in place),
// fresh [batch, size] or NULL, coefficients [4], data_coefficients [2], item [inputs] below batch,
// sample [inputs, 2 * size], whose first halves are written.
int mrc_guided_step(const float* noise, const float* guidance, int64_t rows, float* latents, float* data,
                    const float* fresh, int64_t batch, int64_t size, const float* coefficients,
                    const float* data_coefficients, float input_scale, const int64_t* item, int64_t inputs,
                    float* sample);

// Group norm of input + bias, bias [count, channels] or NULL, then SiLU if `silu`.
int mrc_group_norm_silu(const mrc_feature_maps* maps, const float* bias, int32_t silu);

// Weights of the reward block: matrices [channels, channels] from input to output as of torch.nn.Linear,
// the rest [channels].
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
