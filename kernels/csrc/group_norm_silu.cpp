// Group norm, timestep bias and SiLU (kernels/group_norm_silu/reference.py).

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "group_norm.h"
#include "parallel.h"
#include "tiles.h"

namespace {

constexpr int64_t kWorthIt = 1 << 15;  // values a thread, about 20 µs

// Scale and shift of one group's channels from their moments over all positions.
template <typename Moment>
void group_affine(const mrc_feature_maps& maps, int64_t group, const Moment* mean, const Moment* squares,
                  const float* bias, float* scale, float* shift) {
  const auto *weights = static_cast<const float*>(maps.scale), *biases = static_cast<const float*>(maps.shift);
  const int64_t width = maps.channels / maps.groups;
  const double a_channel = 1.0 / static_cast<double>(width), a_position = 1.0 / static_cast<double>(maps.positions);
  double total = 0, variance = 0;
  for (int64_t c = 0; c < width; ++c) total += static_cast<double>(mean[c]) + (bias ? bias[c] : 0.0f);
  const double centre = total * a_channel;
  for (int64_t c = 0; c < width; ++c) {
    const double offset = static_cast<double>(mean[c]) + (bias ? bias[c] : 0.0f) - centre;
    variance += squares[c] * a_position + offset * offset;
  }
  const double factor = 1 / std::sqrt(variance * a_channel + maps.epsilon);
  for (int64_t c = 0; c < width; ++c) {
    const double by = weights[group * width + c] * factor;
    scale[c] = static_cast<float>(by);
    shift[c] = static_cast<float>(biases[group * width + c] + ((bias ? bias[c] : 0.0f) - centre) * by);
  }
}

// A group after the other: its positions are still in the cache when they are normalized.
void channels_first(const mrc_feature_maps& maps, const float* bias, Apply apply, float* scale, float* shift) {
  const int64_t width = maps.channels / maps.groups;
  std::vector<float> moments(2 * maps.count * maps.channels);
  float *means = moments.data(), *squares = means + maps.count * maps.channels;
  parallel_for(maps.count * maps.groups, threads_for(maps), [&](int64_t i, int) {
    const Block block = {i / maps.groups, i % maps.groups * width, width, 0, maps.positions};
    const int64_t at = i * width;
    tiles().channel_moments(&maps, block, means + at, squares + at);
    group_affine(maps, i % maps.groups, means + at, squares + at, bias ? bias + at : nullptr, scale + at, shift + at);
    if (apply != Apply::kNothing)
      tiles().normalize(&maps, block, scale + at, shift + at, apply == Apply::kNormSilu);
  });
}

// Chunks of positions with all their channels: moments of each, put together, then the norm.
void channels_last(const mrc_feature_maps& maps, const float* bias, Apply apply, float* scale, float* shift) {
  const int64_t channels = maps.channels, width = channels / maps.groups;
  const int64_t chunk = std::max<int64_t>(16, (1 << 15) / channels);  // read twice: stays in the cache
  const int64_t chunks = (maps.positions + chunk - 1) / chunk, count = maps.count * chunks;
  const int threads = threads_for(maps);
  const auto block = [&](int64_t i) {
    const int64_t first = i % chunks * chunk;
    return Block{i / chunks, 0, channels, first, std::min(chunk, maps.positions - first)};
  };
  std::vector<float> moments(2 * count * channels);
  float *means = moments.data(), *squares = means + count * channels;
  parallel_for(count, threads, [&](int64_t i, int) {
    tiles().channel_moments(&maps, block(i), means + i * channels, squares + i * channels);
  });
  std::vector<double> mean(channels), square(channels);
  for (int64_t item = 0; item < maps.count; ++item) {
    std::fill(mean.begin(), mean.end(), 0.0);
    std::fill(square.begin(), square.end(), 0.0);
    double known = 0;
    for (int64_t k = item * chunks; k < (item + 1) * chunks; ++k) {  // put together as of Chan, Golub and LeVeque
      const double length = static_cast<double>(block(k).positions), total = known + length;
      const double share = length / total, weight = known * share;
      const float *m = means + k * channels, *s = squares + k * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const double difference = m[c] - mean[c];
        mean[c] += difference * share;
        square[c] += s[c] + difference * difference * weight;
      }
      known = total;
    }
    for (int64_t group = 0; group < maps.groups; ++group) {
      const int64_t begin = group * width, at = item * channels + begin;
      group_affine(maps, group, &mean[begin], &square[begin], bias ? bias + at : nullptr, scale + at, shift + at);
    }
  }
  if (apply == Apply::kNothing) return;
  parallel_for(count, threads, [&](int64_t i, int) {
    const int64_t at = i / chunks * channels;
    tiles().normalize(&maps, block(i), scale + at, shift + at, apply == Apply::kNormSilu);
  });
}

}  // namespace

int check_maps(const mrc_feature_maps* maps) {
  if (!maps || !maps->input || !maps->output || !maps->scale || !maps->shift) return MRC_NULL_POINTER;
  if (maps->count < 0 || maps->channels < 1 || maps->positions < 1 || maps->groups < 1 || maps->threads < 1 ||
      maps->channels % maps->groups || maps->type < MRC_FLOAT32 || maps->type > MRC_BFLOAT16)
    return MRC_BAD_SIZE;
  return MRC_OK;
}

int threads_for(const mrc_feature_maps& maps) {
  const int64_t worth = maps.count * maps.channels * maps.positions / kWorthIt;
  return static_cast<int>(std::clamp<int64_t>(worth, 1, maps.threads));
}

void group_norm(const mrc_feature_maps& maps, const float* bias, Apply apply, float* scale, float* shift) {
  (maps.channels_last ? channels_last : channels_first)(maps, bias, apply, scale, shift);
}

extern "C" int mrc_group_norm_silu(const mrc_feature_maps* maps, const float* bias, int32_t silu) try {
  if (const int status = check_maps(maps)) return status;
  std::vector<float> affine(2 * maps->count * maps->channels);
  group_norm(*maps, bias, silu ? Apply::kNormSilu : Apply::kNorm, affine.data(),
             affine.data() + maps->count * maps->channels);
  return MRC_OK;
} catch (const std::bad_alloc&) {
  return MRC_OUT_OF_MEMORY;
}
