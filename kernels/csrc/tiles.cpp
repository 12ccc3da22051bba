#include "tiles.h"

const Tiles& tiles() {
#ifdef MRC_X86
  static const Tiles& best = __builtin_cpu_supports("avx512f") ? tiles_avx512
                             : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? tiles_avx2
                                                                                               : tiles_base;
  return best;
#else
  return tiles_base;
#endif
}
