// Vectors as wide as the instruction set that this file is compiled for, and the functions on them.
//
// Files that include this are compiled once an instruction set (CMakeLists.txt). They use nothing of
// the standard library but builtins: an inline function of a header, compiled for AVX-512 and merged
// by the linker, would run on machines that have none.
#ifndef MRC_SIMD_H
#define MRC_SIMD_H

#include <stdint.h>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;  // rows of a matrix product's block: its sums fill the registers
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;  // columns of a block

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * sizeof(uint32_t))));

inline Vec load(const float* from) {
  Vec vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(float* to, Vec vector) { __builtin_memcpy(to, &vector, sizeof vector); }

inline Vec all(float value) { return value - Vec{}; }

template <int lanes>
struct Part {
  typedef float type __attribute__((vector_size(lanes * sizeof(float))));
};

// Sum over the lanes, halves by halves.
template <int lanes>
inline float sum_of(typename Part<lanes>::type vector) {
  if constexpr (lanes == 1) {
    return vector[0];
  } else {
    typename Part<lanes / 2>::type halves[2];
    __builtin_memcpy(halves, &vector, sizeof vector);
    return sum_of<lanes / 2>(halves[0] + halves[1]);
  }
}

inline float sum(Vec vector) { return sum_of<kLanes>(vector); }

inline Vec clamp(Vec x, float low, float high) {
  x = x < low ? all(low) : x;
  return x > high ? all(high) : x;
}

// e^x with x clamped to -87 … 88, relative error 2e-7; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial, 2^n by its bits.
inline Vec exponential(Vec x) {
  const Vec clamped = clamp(x, -87.0f, 88.0f);
  // adding 1.5 · 2^23 rounds to a whole number, which is then the low bits
  const Vec moved = clamped * 1.44269504f + 12582912.0f;
  const Vec whole = moved - 12582912.0f;
  const Vec r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vec e = all(1.0f / 720);
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  IntVec bits;
  __builtin_memcpy(&bits, &moved, sizeof bits);
  bits = (bits + 127) << 23;
  Vec power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return e * power + (x - x);  // the last keeps NaN
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// x Φ(x), the exact GELU. Φ by Abramowitz and Stegun 7.1.26, off by at most 8e-8.
inline Vec gelu(Vec x) {
  const Vec z = (x < 0.0f ? -x : x) * 0.70710678f;
  const Vec t = 1.0f / (1.0f + 0.3275911f * z);
  Vec tail = all(1.061405429f);
  tail = tail * t - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  tail = 0.5f * tail * t * exponential(-z * z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace

#endif  // MRC_SIMD_H
