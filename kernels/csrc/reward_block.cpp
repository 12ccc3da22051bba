// The reward block over tiles of positions (kernels/reward_block/reference.py).

#include <algorithm>
#include <new>
#include <vector>

#include "group_norm.h"
#include "parallel.h"
#include "tiles.h"

namespace {

// [outputs, inputs] → [outputs / panel][inputs][panel]
void pack(const float* matrix, int64_t channels, int panel, float* packed) {
  for (int64_t out = 0; out < channels; ++out)
    for (int64_t in = 0; in < channels; ++in)
      packed[out / panel * panel * channels + in * panel + out % panel] = matrix[out * channels + in];
}

}  // namespace

extern "C" int mrc_reward_block(const mrc_feature_maps* maps, const mrc_reward_weights* weights, const float* gate,
                                const float* gate_bias, const float* base, const float* update) try {
  if (const int status = check_maps(maps)) return status;
  if (!weights || !gate || !gate_bias || !base || !update) return MRC_NULL_POINTER;
  const int64_t channels = maps->channels, square = channels * channels;
  if (channels % 32) return MRC_BAD_SIZE;

  std::vector<float> packed(4 * square);
  const float* matrices[] = {weights->proj_in, weights->inner, weights->outer, weights->proj_out};
  const int threads = threads_for(*maps);
  parallel_for(4, threads, [&](int64_t i, int) { pack(matrices[i], channels, tiles().panel, &packed[i * square]); });
  std::vector<float> by_head(maps->count * kHeads * channels);  // update, a head's channels together
  for (int64_t item = 0; item < maps->count; ++item)
    for (int64_t c = 0; c < channels; ++c)
      for (int h = 0; h < kHeads; ++h)
        by_head[(item * kHeads + h) * channels + c] = update[(item * channels + c) * kHeads + h];

  std::vector<float> scale(maps->count * channels), shift(scale.size());
  group_norm(*maps, nullptr, Apply::kNothing, scale.data(), shift.data());
  const float* matrix = packed.data();
  const RewardTile tile = {maps, weights, {matrix, matrix + square, matrix + 2 * square, matrix + 3 * square},
                           scale.data(), shift.data(), gate, gate_bias, base, by_head.data()};
  const int64_t count = (maps->positions + kTile - 1) / kTile, room = 3 * kTile * channels;
  std::vector<float> scratch(threads * room);
  parallel_for(maps->count * count, threads, [&](int64_t i, int worker) {
    const int64_t first = i % count * kTile;
    tiles().reward_tile(tile, i / count, first, std::min<int64_t>(kTile, maps->positions - first),
                        &scratch[worker * room]);
  });
  return MRC_OK;
} catch (const std::bad_alloc&) {
  return MRC_OUT_OF_MEMORY;
}
