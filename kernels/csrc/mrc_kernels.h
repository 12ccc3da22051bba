// C interface of the native kernels. Arrays are row-major float32 unless said otherwise.
#ifndef MRC_KERNELS_H
#define MRC_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MRC_OK = 0, MRC_BAD_SIZE = 1, MRC_NULL_POINTER = 2 };

// noise [rows, size], guidance [batch, rows], latents and data [batch, size] (updated in place),
// fresh [batch, size] or NULL, coefficients [4], data_coefficients [2], item [inputs] below batch,
// sample [inputs, 2 * size], whose first halves are written. Returns one of the codes above.
int mrc_guided_step(const float* noise, const float* guidance, int64_t rows, float* latents, float* data,
                    const float* fresh, int64_t batch, int64_t size, const float* coefficients,
                    const float* data_coefficients, float input_scale, const int64_t* item, int64_t inputs,
                    float* sample);

#ifdef __cplusplus
}
#endif

#endif  // MRC_KERNELS_H
