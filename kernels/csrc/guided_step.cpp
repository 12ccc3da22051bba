// Guidance, one linear sampler step and the next U-Net input (kernels/guided_step/reference.py).

#include "mrc_kernels.h"

#include <algorithm>

namespace {

constexpr int64_t kChunk = 1024;  // floats; the guided noise of a chunk stays in the L1 cache

}  // namespace

extern "C" int mrc_guided_step(const float* noise, const float* guidance, int64_t rows, float* latents,
                               float* data, const float* fresh, int64_t batch, int64_t size,
                               const float* coefficients, const float* data_coefficients,
                               float input_scale, const int64_t* item, int64_t inputs, float* sample) {
  if (rows < 0 || batch < 0 || size < 0 || inputs < 0) return MRC_BAD_SIZE;
  if (!noise || !guidance || !latents || !data || !coefficients || !data_coefficients || !item || !sample)
    return MRC_NULL_POINTER;
  const float a = coefficients[0], b = coefficients[1], c = coefficients[2], e = coefficients[3];
  const float p = data_coefficients[0], q = data_coefficients[1];
  for (int64_t image = 0; image < batch; ++image) {
    float* x = latents + image * size;
    float* d = data + image * size;
    const float* z = fresh ? fresh + image * size : nullptr;
    for (int64_t begin = 0; begin < size; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, size);
      float epsilon[kChunk] = {};
      for (int64_t row = 0; row < rows; ++row) {
        const float weight = guidance[image * rows + row];
        if (weight == 0.0f) continue;  // another image's branch
        const float* source = noise + row * size;
        for (int64_t i = begin; i < end; ++i) epsilon[i - begin] += weight * source[i];
      }
      for (int64_t i = begin; i < end; ++i) {
        const float guided = epsilon[i - begin];
        const float before = x[i];
        x[i] = a * before + b * guided + c * d[i] + (z ? e * z[i] : 0.0f);
        d[i] = p * before + q * guided;
      }
    }
  }
  for (int64_t input = 0; input < inputs; ++input) {
    const float* x = latents + item[input] * size;
    float* target = sample + input * 2 * size;  // the second half holds the source latents
    for (int64_t i = 0; i < size; ++i) target[i] = input_scale * x[i];
  }
  return MRC_OK;
}
