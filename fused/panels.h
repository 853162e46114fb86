// Vectors of any width, and products of matrices that lie in panels of 32 columns: (columns / 32, rows, 32), the order in
// which a product reads both operands. Columns that fill up the last panel are never used.
#include <math.h>
#include <string.h>

#ifdef __AVX512F__
enum { VL = 16, MR = 12 };  // floats in a vector, rows of a tile: the MR * NV sums of a tile stay in registers
#else
enum { VL = 8, MR = 6 };
#endif
enum {
  NV = 2,            // vectors in a row of a tile
  P = 32,            // columns of a panel
  LANES = 16,        // partial sums of a dot product
  AHEAD = 32,        // rows that are fetched ahead
  MOST_TERMS = 12    // of a product
};
typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VL)));
typedef unsigned uvec __attribute__((vector_size(4 * VL)));
#define INLINE static inline __attribute__((always_inline))

static long least(long a, long b) { return a < b ? a : b; }
static long up(long n, long to) { return (n + to - 1) / to * to; }

// ---- vectors: NaN passes through each of these functions

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec load(const float* p) { return *(const vec*)p; }
INLINE void store(float* p, vec x) { *(vec*)p = x; }
INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

INLINE vec exp_(vec x) {  // relative error 1e-7; 0 below -104, infinite above 89
  x = pick(x < splat(-104), splat(-104), x);
  x = pick(x > splat(89), splat(89), x);
  vec n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // x / log(2), rounded: 1.5 * 2^23 has no bits below 1
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;    // log(2) in two parts
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1;
  ivec half = __builtin_convertvector(n, ivec) >> 1, rest = __builtin_convertvector(n, ivec) - half;
  return p * (vec)((uvec)(half + 127) << 23) * (vec)((uvec)(rest + 127) << 23);  // 2^n alone may overflow
}
INLINE vec sigmoid(vec x) { return 1 / (1 + exp_(-x)); }
INLINE vec tanh_(vec x) {
  ivec sign = (ivec)x & (ivec)splat(-0.f);
  vec e = exp_(-2 * (vec)((ivec)x ^ sign));
  return (vec)((ivec)((1 - e) / (1 + e)) | sign);
}
INLINE vec pixels_from(long a) {  // a + 1, a + 2, ...: the first pixel is 1
  vec x;
  for (int k = 0; k < VL; k++) x[k] = k + 1;
  return x + (float)a;
}
static float exp1(float x) { return exp_(splat(x))[0]; }

typedef struct { vec v[LANES / VL]; } lanes;  // sixteen partial sums, on any processor
INLINE lanes no_lanes(void) { return (lanes){{{0}}}; }
INLINE void dot(lanes* sum, const float* x, const float* y, long n) {  // n is a multiple of LANES
  for (long k = 0; k < n; k += LANES)
    for (int j = 0; j < LANES / VL; j++) sum->v[j] += load(x + k + j * VL) * load(y + k + j * VL);
}
INLINE float total(const lanes* sum) {
  typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
  const four* x = (const four*)sum;
  four s = (x[0] + x[2]) + (x[1] + x[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
INLINE void axpy(float* y, float a, const float* x, long n) {  // n is a multiple of LANES
  for (long k = 0; k < n; k += VL) store(y + k, load(y + k) + a * load(x + k));
}

// ---- matrices in panels, and their products

typedef struct {
  float* p;     // element (i, j) is p[j / P * stride + i * step + j % P]
  long stride;  // from a panel to the next
  long step;    // P, or 0 where all rows are the same one
} mat;
typedef struct { mat a, w; long K; } term;  // the product over k < K of a (rows, K) and w (K, columns)

static mat below(mat m, long rows) { return (mat){m.p + rows * m.step, m.stride, m.step}; }
static mat right(mat m, long columns) { return (mat){m.p + columns / P * m.stride, m.stride, m.step}; }
static float* at(mat m, long i, long j) { return m.p + j / P * m.stride + i * m.step + j % P; }
#define EACH(rows, columns, i, j)                \
  for (long j##0 = 0; j##0 < (columns); j##0 += P) \
    for (long i = 0; i < (rows); i++)            \
      for (long j = j##0; j < j##0 + P; j += VL)

static void to_panels(mat out, const float* in, long rows, long columns) {
  for (long j = 0; j < columns; j += P)
    for (long i = 0; i < rows; i++) memcpy(at(out, i, j), in + i * columns + j, 4 * least(P, columns - j));
}
static void from_panels(float* out, mat in, long rows, long columns) {
  for (long j = 0; j < columns; j += P)
    for (long i = 0; i < rows; i++) memcpy(out + i * columns + j, at(in, i, j), 4 * least(P, columns - j));
}

// out(i, n) = init(i, n) + the sum of the terms, for `rows` rows i and `nv` vectors of columns n, n + 1, ...
// With `transposed`, a is one panel (K, rows).
INLINE void tile(int rows, int nv, int transposed, const term* terms, int count, long n, const float* init, long step,
                 float* out) {
  vec sums[MR][NV];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < nv; j++) sums[i][j] = init ? load(init + i * step + j * VL) : (vec){0};
  for (int t = 0; t < count; t++) {
    const float *a = terms[t].a.p, *w = at(terms[t].w, 0, n);
    for (long left = terms[t].K, most; left > 0; left -= most, a += terms[t].a.stride) {
      most = transposed ? left : least(left, P);
      for (long k = 0; k < most; k++, w += P) {
        vec row[NV];
        for (int j = 0; j < nv; j++) __builtin_prefetch(w + AHEAD * P + j * VL);
        if (transposed) __builtin_prefetch(a + (k + AHEAD) * P);
        for (int j = 0; j < nv; j++) row[j] = load(w + j * VL);
        for (int i = 0; i < rows; i++)
          for (int j = 0; j < nv; j++) sums[i][j] += a[transposed ? k * P + i : i * P + k] * row[j];
      }
    }
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < nv; j++) store(out + i * P + j * VL, sums[i][j]);
}

// The tile of at most MR rows and NV * VL columns at the corner of what is left to do; returns the number of its rows.
INLINE long corner(long rows, long columns, int transposed, const term* terms, int count, long n, const float* init,
                   long step, float* out) {
#define CASE(r)                                                                                          \
  case r:                                                                                                \
    if (columns > VL) tile(r, 2, transposed, terms, count, n, init, step, out);                          \
    else tile(r, 1, transposed, terms, count, n, init, step, out);                                       \
    return r;
  switch (rows <= MR ? rows : rows < 2 * MR ? (rows + 1) / 2 : MR) {  // no tile is much smaller than the others
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512F__
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
#undef CASE
  return rows;
}

// out = init + the sum of the terms: `rows` rows, and `groups` times `size` columns, each group starting at a new panel
static void product(mat out, long rows, long groups, long size, mat init, const term* terms, int count) {
  for (long g = 0; g < groups; g++)
    for (long n = 0; n < size; n += NV * VL)
      for (long i = 0, column = g * up(size, P) + n; i < rows;) {
        term own[MOST_TERMS];
        for (int t = 0; t < count; t++) own[t] = (term){below(terms[t].a, i), terms[t].w, terms[t].K};
        i += corner(rows - i, size - n, 0, own, count, column, init.p ? at(init, i, column) : 0, init.step,
                    at(out, i, column));
      }
}
