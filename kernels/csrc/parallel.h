// Threads for a call, from OpenMP: in a process with PyTorch it is PyTorch's own runtime, whose idle
// threads would otherwise compete with ours.
#ifndef MRC_PARALLEL_H
#define MRC_PARALLEL_H

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

// body(i, worker) for every i below count, worker below threads.
template <typename Body>
void parallel_for(int64_t count, int threads, Body body) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) body(i, omp_get_thread_num());
#else
  (void)threads;
  for (int64_t i = 0; i < count; ++i) body(i, 0);
#endif
}

#endif  // MRC_PARALLEL_H
