// The rate at which the processor multiplies and adds, with all operands in registers.
#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { SUMS = 12 };  // as many as hide the latency of one multiply-add
typedef float vec __attribute__((vector_size(4 * LANES)));

// Each thread makes `rounds` multiply-adds in each of its sums. Returns the number of all multiply-adds.
double multiply_adds(long rounds, int threads, float factor, volatile float* result) {
#pragma omp parallel num_threads(threads)
  {
    vec sums[SUMS], total = {0}, a = factor - total;
    for (int k = 0; k < SUMS; k++) sums[k] = total + (float)k;
    for (long n = 0; n < rounds; n++)
      for (int k = 0; k < SUMS; k++) sums[k] = sums[k] * a + a;
    for (int k = 0; k < SUMS; k++) total += sums[k];
    *result = total[0];  // so that nothing above can be left out
  }
  return (double)rounds * threads * SUMS * LANES;
}
