// The inner functions, compiled once an instruction set, and the choice among them.
#ifndef MRC_TILES_H
#define MRC_TILES_H

#include "mrc_kernels.h"

constexpr int kHeads = 8;
constexpr int kTile = 48;  // positions that go through the reward block together; a multiple of any kRows

// A matrix [channels, channels] in panels: [channels / panel][channels (inputs)][panel (outputs)]
struct PackedWeights {
  const float *proj_in, *inner, *outer, *proj_out;
};

struct RewardTile {
  const mrc_feature_maps* maps;
  const mrc_reward_weights* weights;
  PackedWeights packed;
  const float *scale, *shift;                      // [count, channels]: the group norm as x · scale + shift
  const float *gate, *gate_bias, *base, *update;   // update [count, 8, channels]
};

// Some channels of some positions of one feature map; channels-last blocks have all channels.
struct Block {
  int64_t item, channel, channels, position, positions;
};

struct Tiles {
  int panel;  // columns of a packed panel
  // mean and sum of squared deviations of every channel of the block
  void (*channel_moments)(const mrc_feature_maps* maps, const Block& block, float* mean, float* squares);
  // output = input · scale + shift, then SiLU; scale and shift of the block's channels
  void (*normalize)(const mrc_feature_maps* maps, const Block& block, const float* scale, const float* shift,
                    bool silu);
  // one tile of the reward block; scratch has 3 · kTile · channels floats
  void (*reward_tile)(const RewardTile& args, int64_t item, int64_t first, int64_t length, float* scratch);
};

extern const Tiles tiles_base, tiles_avx2, tiles_avx512;

// The best set that this machine runs
const Tiles& tiles();

#endif  // MRC_TILES_H
