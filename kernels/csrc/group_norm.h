#ifndef MRC_GROUP_NORM_H
#define MRC_GROUP_NORM_H

#include "mrc_kernels.h"

int check_maps(const mrc_feature_maps* maps);

// How many threads are worth starting for the maps, at most maps.threads.
int threads_for(const mrc_feature_maps& maps);

enum class Apply { kNothing, kNorm, kNormSilu };

// Group norm of input + bias as x · scale + shift, both [count, channels], and what is asked of the output;
// bias [count, channels] or null.
void group_norm(const mrc_feature_maps& maps, const float* bias, Apply apply, float* scale, float* shift);

#endif  // MRC_GROUP_NORM_H
