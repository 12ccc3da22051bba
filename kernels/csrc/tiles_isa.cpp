// Compiled once an instruction set; MRC_TILES names the table that results.

#include "tiles.h"
#include "simd.h"

namespace {

// ---- values of a feature map

inline float to_float(float value) { return value; }
inline float to_float(_Float16 value) { return static_cast<float>(value); }

struct BFloat16 {
  uint16_t bits;
};

inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <typename Value>
inline Value from_float(float value) {
  return static_cast<Value>(value);
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {  // to the nearest, ties to even
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <typename Narrow>
struct NarrowVec {
  typedef Narrow type __attribute__((vector_size(kLanes * sizeof(Narrow))));
};

inline Vec load_values(const float* from) { return load(from); }

inline Vec load_values(const _Float16* from) {
  NarrowVec<_Float16>::type narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
  return __builtin_convertvector(narrow, Vec);
}

inline Vec load_values(const BFloat16* from) {
  NarrowVec<uint16_t>::type narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
  const UintVec bits = __builtin_convertvector(narrow, UintVec) << 16;
  Vec wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void store_values(float* to, Vec vector) { store(to, vector); }

inline void store_values(_Float16* to, Vec vector) {
  const auto narrow = __builtin_convertvector(vector, NarrowVec<_Float16>::type);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

inline void store_values(BFloat16* to, Vec vector) {  // as from_float
  UintVec bits;
  __builtin_memcpy(&bits, &vector, sizeof bits);
  const UintVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
  const auto narrow = __builtin_convertvector(vector == vector ? rounded : quiet, NarrowVec<uint16_t>::type);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

// Calls body with a pointer of the maps' type.
template <typename Body>
inline void by_type(const mrc_feature_maps* maps, Body body) {
  if (maps->type == MRC_FLOAT32)
    body(static_cast<float*>(nullptr));
  else if (maps->type == MRC_FLOAT16)
    body(static_cast<_Float16*>(nullptr));
  else
    body(static_cast<BFloat16*>(nullptr));
}

// ---- group norm

// Mean and sum of squared deviations of a run.
template <typename Value>
inline void run_moments(const Value* run, int64_t length, float* mean, float* squares) {
  const int64_t whole = length - length % kLanes;
  Vec sums[2] = {}, deviations[2] = {};
  for (int64_t i = 0; i < whole; i += kLanes) sums[i / kLanes % 2] += load_values(run + i);
  float total = sum(sums[0] + sums[1]);
  for (int64_t i = whole; i < length; ++i) total += to_float(run[i]);
  const float centre = total / static_cast<float>(length);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec difference = load_values(run + i) - centre;
    deviations[i / kLanes % 2] += difference * difference;
  }
  total = sum(deviations[0] + deviations[1]);
  for (int64_t i = whole; i < length; ++i) total += (to_float(run[i]) - centre) * (to_float(run[i]) - centre);
  *mean = centre;
  *squares = total;
}

void channel_moments(const mrc_feature_maps* maps, const Block& block, float* mean, float* squares) {
  by_type(maps, [&](auto* type) {
    using Value = __typeof__(*type);
    const Value* input = static_cast<const Value*>(maps->input) + block.item * maps->channels * maps->positions;
    const int64_t length = block.positions, channels = block.channels;
    if (!maps->channels_last) {
      for (int64_t c = 0; c < channels; ++c)
        run_moments(input + (block.channel + c) * maps->positions + block.position, length, mean + c, squares + c);
      return;
    }
    input += block.position * channels;
    const float share = 1.0f / static_cast<float>(length);
    int64_t c = 0;
    for (; c + kPanel <= channels; c += kPanel) {  // two vectors of channels down all positions
      const Value* column = input + c;
      Vec sums[2] = {}, deviations[2] = {};
      for (int64_t p = 0; p < length; ++p)
        for (int v = 0; v < 2; ++v) sums[v] += load_values(column + p * channels + v * kLanes);
      for (int v = 0; v < 2; ++v) sums[v] *= share;
      for (int64_t p = 0; p < length; ++p)
        for (int v = 0; v < 2; ++v) {
          const Vec difference = load_values(column + p * channels + v * kLanes) - sums[v];
          deviations[v] += difference * difference;
        }
      for (int v = 0; v < 2; ++v) {
        store(mean + c + v * kLanes, sums[v]);
        store(squares + c + v * kLanes, deviations[v]);
      }
    }
    for (; c < channels; ++c) {
      float total = 0, deviation = 0;
      for (int64_t p = 0; p < length; ++p) total += to_float(input[p * channels + c]);
      mean[c] = total * share;
      for (int64_t p = 0; p < length; ++p) {
        const float difference = to_float(input[p * channels + c]) - mean[c];
        deviation += difference * difference;
      }
      squares[c] = deviation;
    }
  });
}

// A run times scale plus shift, then SiLU; scale and shift step by `stride` (0 or 1) a value.
template <bool silu, typename Value>
inline void affine_run(const Value* run, int64_t length, const float* scale, const float* shift, int stride,
                       Value* output) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    const Vec by = stride ? load(scale + i) : all(*scale), plus = stride ? load(shift + i) : all(*shift);
    const Vec x = load_values(run + i) * by + plus;
    store_values(output + i, silu ? x * sigmoid(x) : x);
  }
  for (; i < length; ++i) {
    const float x = to_float(run[i]) * scale[i * stride] + shift[i * stride];
    output[i] = from_float<Value>(silu ? x * sigmoid(all(x))[0] : x);
  }
}

void normalize(const mrc_feature_maps* maps, const Block& block, const float* scale, const float* shift, bool silu) {
  by_type(maps, [&](auto* type) {
    using Value = __typeof__(*type);
    const int64_t image = block.item * maps->channels * maps->positions;
    const bool last = maps->channels_last;
    const int64_t runs = last ? block.positions : block.channels, run = last ? block.channels : block.positions;
    for (int64_t r = 0; r < runs; ++r) {
      const int64_t at = image + (last ? (block.position + r) * maps->channels
                                       : (block.channel + r) * maps->positions + block.position);
      const Value* input = static_cast<const Value*>(maps->input) + at;
      Value* output = static_cast<Value*>(maps->output) + at;
      const float *by = last ? scale : scale + r, *plus = last ? shift : shift + r;
      if (silu)
        affine_run<true>(input, run, by, plus, last, output);
      else
        affine_run<false>(input, run, by, plus, last, output);
    }
  });
}

// ---- reward block

// y [kTile, channels] = x [kTile, channels] · matrix + bias
void matrix_product(const float* x, const float* packed, const float* bias, int64_t channels, float* y) {
  for (int64_t column = 0; column < channels; column += kPanel) {
    const float* panel = packed + column * channels;
    const Vec bias0 = load(bias + column), bias1 = load(bias + column + kLanes);
    for (int row = 0; row < kTile; row += kRows) {
      const float* from = x + row * channels;
      Vec sums[kRows][2];
      for (int r = 0; r < kRows; ++r) sums[r][0] = bias0, sums[r][1] = bias1;
      for (int64_t k = 0; k < channels; ++k) {
        const Vec w0 = load(panel + k * kPanel), w1 = load(panel + k * kPanel + kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          const float value = from[r * channels + k];
          sums[r][0] += value * w0;
          sums[r][1] += value * w1;
        }
      }
      for (int r = 0; r < kRows; ++r) {
        store(y + (row + r) * channels + column, sums[r][0]);
        store(y + (row + r) * channels + column + kLanes, sums[r][1]);
      }
    }
  }
}

// One row's layer norm in place, epsilon 1e-12 as in the release.
inline void layer_norm(float* row, int64_t channels, const float* weight, const float* bias) {
  Vec sums = {}, deviations = {};
  for (int64_t c = 0; c < channels; c += kLanes) sums += load(row + c);
  const float mean = sum(sums) / static_cast<float>(channels);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Vec difference = load(row + c) - mean;
    deviations += difference * difference;
  }
  const float factor = 1.0f / __builtin_sqrtf(sum(deviations) / static_cast<float>(channels) + 1e-12f);
  for (int64_t c = 0; c < channels; c += kLanes)
    store(row + c, (load(row + c) - mean) * factor * load(weight + c) + load(bias + c));
}

// A row plus its folded attention: base + update · σ(gate · row + gate_bias).
inline void attend(float* row, int64_t channels, const float* gate, const float* gate_bias, const float* base,
                   const float* update) {
  Vec dots[kHeads] = {};
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Vec x = load(row + c);
    for (int h = 0; h < kHeads; ++h) dots[h] += x * load(gate + h * channels + c);
  }
  float open[kHeads];
  for (int h = 0; h < kHeads; ++h) open[h] = sigmoid(all(sum(dots[h]) + gate_bias[h]))[0];
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec x = load(row + c) + load(base + c);
    for (int h = 0; h < kHeads; ++h) x += open[h] * load(update + h * channels + c);
    store(row + c, x);
  }
}

// x [length, channels] = group norm of the tile's positions
template <typename Value>
void load_tile(const RewardTile& args, const Value* image, int64_t item, int64_t first, int64_t length, float* x) {
  const int64_t channels = args.maps->channels, positions = args.maps->positions;
  const float *scale = args.scale + item * channels, *shift = args.shift + item * channels;
  if (args.maps->channels_last) {
    for (int64_t p = 0; p < length; ++p)
      for (int64_t c = 0; c < channels; ++c)
        x[p * channels + c] = to_float(image[(first + p) * channels + c]) * scale[c] + shift[c];
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t p = 0; p < length; ++p)
      x[p * channels + c] = to_float(image[c * positions + first + p]) * scale[c] + shift[c];
}

void reward_tile(const RewardTile& args, int64_t item, int64_t first, int64_t length, float* scratch) {
  const mrc_reward_weights& weights = *args.weights;
  const int64_t channels = args.maps->channels, positions = args.maps->positions;
  float *x = scratch, *y = x + kTile * channels, *z = y + kTile * channels;
  by_type(args.maps, [&](auto* type) {
    using Value = __typeof__(*type);
    const Value* input = static_cast<const Value*>(args.maps->input) + item * channels * positions;
    Value* output = static_cast<Value*>(args.maps->output) + item * channels * positions;
    load_tile(args, input, item, first, length, x);

    matrix_product(x, args.packed.proj_in, weights.proj_in_bias, channels, y);
    for (int64_t p = 0; p < length; ++p) {
      attend(y + p * channels, channels, args.gate + item * kHeads * channels, args.gate_bias + item * kHeads,
             args.base + item * channels, args.update + item * kHeads * channels);
      layer_norm(y + p * channels, channels, weights.norm1, weights.norm1_bias);
    }
    matrix_product(y, args.packed.inner, weights.inner_bias, channels, x);
    for (int64_t i = 0; i < length * channels; i += kLanes) store(x + i, gelu(load(x + i)));
    matrix_product(x, args.packed.outer, weights.outer_bias, channels, z);
    for (int64_t p = 0; p < length; ++p) {
      float* row = z + p * channels;
      for (int64_t c = 0; c < channels; c += kLanes) store(row + c, load(row + c) + load(y + p * channels + c));
      layer_norm(row, channels, weights.norm2, weights.norm2_bias);
    }
    matrix_product(z, args.packed.proj_out, weights.proj_out_bias, channels, x);

    for (int64_t outer = 0; outer < (args.maps->channels_last ? length : channels); ++outer)
      for (int64_t inner = 0; inner < (args.maps->channels_last ? channels : length); ++inner) {
        const int64_t p = args.maps->channels_last ? outer : inner, c = args.maps->channels_last ? inner : outer;
        const int64_t at = args.maps->channels_last ? (first + p) * channels + c : c * positions + first + p;
        output[at] = from_float<Value>(to_float(input[at]) + x[p * channels + c]);
      }
  });
}

}  // namespace

extern const Tiles MRC_TILES = {kPanel, channel_moments, normalize, reward_tile};
