// core.DRAW as one operator: forward and backward through all time steps, Eqns. 1-8 and 17-29 of arXiv:1502.04623.
//
// Why it is fast: weights are packed once per call and used at all T steps; a thread takes some images of the batch
// through all steps, forward or backward, without waiting for the others; the gates' gradients of all steps are kept,
// so that every weight gradient is one product over T * batch rows.
//
// A matrix is stored in panels of 32 columns, (columns / 32, rows, 32), which both operands of a product read in order.
// The gates i, f, o, g and the halves mu and log_sigma of q begin at a panel of their own; filler columns are unused.
// Every number is computed in one order, whatever the number of threads and the width of the vectors.
#include <math.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#ifdef __AVX512F__
enum { VL = 16, MR = 12 };  // floats in a vector; rows of a tile: MR * NV sums stay in registers
#else
enum { VL = 8, MR = 6 };
#endif
enum { NV = 2, P = 32, LANES = 16, BLOCK = 256, MOST_TERMS = 12, GROUP = 4, AHEAD = 32 };  // BLOCK: rows of a weight gradient's operands that stay in cache
typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VL)));
typedef unsigned uvec __attribute__((vector_size(4 * VL)));
#define INLINE static inline __attribute__((always_inline))

static long least(long a, long b) { return a < b ? a : b; }
static long up(long n, long to) { return (n + to - 1) / to * to; }

// ---- vectors; NaN passes through all of these

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
  typedef float four __attribute__((vector_size(16), may_alias));
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
  long stride;  // floats between two panels
  long step;    // P, or 0 for one row that stands for all
} mat;
typedef struct {
  mat a, w;  // a term of a product: sum over k < K of a(i, k) w(k, n)
  long K;
} term;

static mat below(mat m, long rows) { return (mat){m.p + rows * m.step, m.stride, m.step}; }
static mat right(mat m, long columns) { return (mat){m.p + columns / P * m.stride, m.stride, m.step}; }
static float* at(mat m, long i, long j) { return m.p + j / P * m.stride + i * m.step + j % P; }

// out(i, n) = init(i, n) + sum of terms, for rows rows (at most MR) and nv vectors of columns from `out` on. With `across`,
// a(k, i) in place of a(i, k), in one panel.
INLINE void tile(int rows, int nv, int across, const term* terms, int count, long n, const float* init, long step, float* out) {
  vec sums[MR][NV];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < nv; j++) sums[i][j] = init ? load(init + i * step + j * VL) : (vec){0};
  for (int t = 0; t < count; t++) {
    const float *a = terms[t].a.p, *w = at(terms[t].w, 0, n);
    for (long rest = terms[t].K; rest > 0; rest -= P, a += terms[t].a.stride) {
      long most = across ? rest : least(rest, P);
      for (long k = 0; k < most; k++, w += P) {
        vec row[NV];
        for (int j = 0; j < nv; j++) __builtin_prefetch(w + AHEAD * P + j * VL);
        if (across) __builtin_prefetch(a + (k + AHEAD) * P);
        for (int j = 0; j < nv; j++) row[j] = load(w + j * VL);
        for (int i = 0; i < rows; i++)
          for (int j = 0; j < nv; j++) sums[i][j] += a[across ? k * P + i : i * P + k] * row[j];
      }
      if (across) break;
    }
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < nv; j++) store(out + i * P + j * VL, sums[i][j]);
}

static void tiles(int across, long rows, long columns, const term* terms, int count, long n, const float* init, long step,
                  float* out) {
#define CASE(r)                                                                             \
  case r:                                                                                   \
    if (columns > VL)                                                                       \
      across ? tile(r, 2, 1, terms, count, n, init, step, out) : tile(r, 2, 0, terms, count, n, init, step, out); \
    else                                                                                    \
      across ? tile(r, 1, 1, terms, count, n, init, step, out) : tile(r, 1, 0, terms, count, n, init, step, out); \
    break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined __AVX512F__
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
#undef CASE
}

static long tile_rows(long rest) { return rest <= MR ? rest : rest < 2 * MR ? (rest + 1) / 2 : MR; }

// out = init + sum of terms, `rows` rows, and `groups` times `size` columns, each group from a panel of its own on
static void product(const term* terms, int count, mat init, mat out, long rows, long groups, long size) {
  for (long g = 0; g < groups; g++)
    for (long n = 0; n < size; n += NV * VL)
      for (long i = 0, m; i < rows; i += m) {
        long column = g * up(size, P) + n;
        m = tile_rows(rows - i);
        term own[MOST_TERMS];
        for (int t = 0; t < count; t++) own[t] = (term){below(terms[t].a, i), terms[t].w, terms[t].K};
        tiles(0, m, size - n, own, count, column, init.p ? at(init, i, column) : 0, init.step, at(out, i, column));
      }
}

static void to_panels(mat out, const float* in, long rows, long columns) {
  for (long j = 0; j < columns; j += P)
    for (long i = 0; i < rows; i++) memcpy(at(out, i, j), in + i * columns + j, 4 * least(P, columns - j));
}
static void from_panels(float* out, mat in, long rows, long columns) {
  for (long j = 0; j < columns; j += P)
    for (long i = 0; i < rows; i++) memcpy(out + i * columns + j, at(in, i, j), 4 * least(P, columns - j));
}
#define EACH(columns, rows, i, j) \
  for (long j##0 = 0; j##0 < (columns); j##0 += P) for (long i = 0; i < (rows); i++) for (long j = j##0; j < j##0 + P; j += VL)

// ---- the network

typedef struct { long T, B, U, Z, H, W, attention, N_read, N_write, keep, threads, chunk; } sizes;
typedef struct { long groups, size, K; } layer;  // its weight is (groups * size, K); no groups: not in this network
enum { R_TO_ENC, X_TO_ENC, H_DEC_TO_ENC, H_ENC_TO_ENC, H_ENC_TO_Q, Z_TO_DEC, H_DEC_TO_DEC, WRITE, READ_WINDOW, WRITE_WINDOW,
       LAYERS, STATES = 4 };  // h_enc, c_enc, h_dec, c_dec
typedef struct {
  sizes s;
  long D, LW, LH;           // pixels; the image's width and height, up to whole vectors
  long R;                   // numbers of r_t that differ from step to step
  layer layers[LAYERS];
  mat w_t[LAYERS], w[LAYERS], bias[LAYERS];  // weights transposed for the forward pass; as they are for the backward pass
  // Saved at slot t = 1 .. T, for all images of the batch; h and c also at 0. Gradients take the place of gates, q, patch
  // and windows.
  mat r, g_enc, h_enc, c_enc, q, z, g_dec, h_dec, c_dec, write, read_window, write_window;
  float* mean;              // sigmoid(c_{t-1}) with attention
  mat x, x_gates, canvas;   // without attention
  float *x_image, *canvas_image;  // with attention: rows of LW floats
  mat eps, dmu, dlog_sigma, dz, dr, d[STATES];
  float* scratch;           // of one thread, for attention
  long num_scratch;
  float* base;
  long used;
} net;

static float* take(net* n, long floats) {
  float* p = n->base ? n->base + n->used : 0;
  n->used += up(floats, LANES);
  return p;
}
static mat matrix(net* n, long rows, long columns) {
  rows |= 1;  // an odd number, or the panels of a row would share the same few lines of the cache
  return (mat){take(n, rows * up(columns, P)), rows * P, P};
}
static long panels(const layer* l) { return l->groups * up(l->size, P) / P; }

static net lay_out(const sizes* s, float* base) {
  net n = {.s = *s, .base = base, .D = s->H * s->W, .LW = up(s->W, LANES), .LH = up(s->H, LANES)};
  long slots = (s->keep ? s->T + 1 : 2) * s->B, B = s->B, U = s->U, D = n.D, widest = s->N_read > s->N_write ? s->N_read : s->N_write;
  n.R = s->attention ? 2 * s->N_read * s->N_read : D;
  layer layers[LAYERS] = {
      [R_TO_ENC] = {4, U, n.R}, [X_TO_ENC] = {s->attention ? 0 : 4, U, D}, [H_DEC_TO_ENC] = {4, U, U},
      [H_ENC_TO_ENC] = {4, U, U}, [H_ENC_TO_Q] = {2, s->Z, U}, [Z_TO_DEC] = {4, U, s->Z}, [H_DEC_TO_DEC] = {4, U, U},
      [WRITE] = {1, s->attention ? s->N_write * s->N_write : D, U}, [READ_WINDOW] = {s->attention ? 1 : 0, 5, U},
      [WRITE_WINDOW] = {s->attention ? 1 : 0, 5, U}};
  for (int l = 0; l < LAYERS; l++) {
    n.layers[l] = layers[l];
    long N = P * panels(layers + l), K = layers[l].K;
    n.bias[l] = (mat){take(&n, N), P, 0};
    n.w_t[l] = (mat){take(&n, N * K), P * K, P};
    if (s->keep) n.w[l] = (mat){take(&n, N * up(K, P)), P * N, P};
  }
  for (int k = 0; k < STATES; k++) n.d[k] = matrix(&n, B, U);
  n.r = matrix(&n, slots, n.R), n.q = matrix(&n, slots, up(s->Z, P) * 2), n.z = matrix(&n, slots, s->Z);
  n.g_enc = matrix(&n, slots, 4 * up(U, P)), n.g_dec = matrix(&n, slots, 4 * up(U, P));
  n.h_enc = matrix(&n, slots, U), n.c_enc = matrix(&n, slots, U), n.h_dec = matrix(&n, slots, U), n.c_dec = matrix(&n, slots, U);
  n.write = matrix(&n, slots, layers[WRITE].size);
  n.eps = matrix(&n, slots, s->Z), n.dmu = matrix(&n, B, s->Z), n.dlog_sigma = matrix(&n, B, s->Z), n.dz = matrix(&n, B, s->Z);
  n.dr = matrix(&n, B, n.R);
  if (s->attention) {
    n.read_window = matrix(&n, slots, 5), n.write_window = matrix(&n, slots, 5);
    n.mean = take(&n, slots * s->H * n.LW), n.x_image = take(&n, B * s->H * n.LW), n.canvas_image = take(&n, B * s->H * n.LW);
    n.num_scratch = up(widest * (6 * n.LW + 2 * n.LH + 2), LANES);
    n.scratch = take(&n, n.num_scratch * s->threads);
  } else
    n.x = matrix(&n, B, D), n.x_gates = matrix(&n, B, 4 * up(U, P)), n.canvas = matrix(&n, B, D);
  return n;
}

static long slot(const net* n, long t) { return (n->s.keep ? t : t & 1) * n->s.B; }
static mat step_of(const net* n, mat m, long t, long b) { return below(m, slot(n, t) + b); }

// The layer that panel number `task` of all layers' outputs is in; the panel's first row of the weight, and how many rows
static int locate(const net* n, long task, long* panel, long* row, long* rows) {
  int l = 0;
  for (; task >= panels(n->layers + l); l++) task -= panels(n->layers + l);
  long each = up(n->layers[l].size, P) / P, first = task % each * P;
  *panel = task, *row = task / each * n->layers[l].size + first, *rows = least(P, n->layers[l].size - first);
  return l;
}
static long num_tasks(const net* n) {
  long tasks = 0;
  for (int l = 0; l < LAYERS; l++) tasks += panels(n->layers + l);
  return tasks;
}

// Pack 32 outputs of a layer
static void pack(const net* n, long task, const float** params) {
  long panel, row, rows;
  int l = locate(n, task, &panel, &row, &rows);
  long K = n->layers[l].K;
  const float* in = params[2 * l] + row * K;
  float* out = n->w_t[l].p + panel * n->w_t[l].stride;
  for (long k = 0; k < K; k++)
    for (long i = 0; i < rows; i++) out[k * P + i] = in[i * K + k];
  if (n->s.keep) to_panels(below(n->w[l], panel * P), in, rows, K);
  if (params[2 * l + 1]) memcpy(n->bias[l].p + panel * P, params[2 * l + 1] + row, 4 * rows);
}

// ---- selective attention of one image; F_x is (N, LW), F_y (N, LH), both zero beyond the image

typedef struct {
  long N, W, H, LW, LH;
  float *F_x, *F_y, *mu_x, *mu_y, *dF_x, *dF_y, *rows, *rows_hat, *drows, *drows_hat;  // rows: (N, LW)
  float sigma2, delta, gamma;
} window;

static float clip(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
static void filter(float* F, float mu, float sigma2, long L, long most) {                        // Eqns. 25-26
  // The pixel nearest to mu has the largest exponent: the others less that one, factored so that nothing cancels.
  float nearest = clip(floorf(mu + 0.5f), 1, L), scale = -0.5f / sigma2;
  lanes sum = no_lanes();
  for (long a = 0; a < most; a += LANES)
    for (int j = 0; j < LANES / VL; j++) {
      vec pixel = pixels_from(a + j * VL), e = exp_(scale * (pixel - nearest) * (pixel - mu + (nearest - mu)));
      e = pick(pixel > (float)L, splat(0), e);
      store(F + a + j * VL, e), sum.v[j] += e;
    }
  vec Z = splat(total(&sum));
  for (long a = 0; a < most; a += VL) store(F + a, load(F + a) / Z);
}
static window filterbank(const net* n, float* scratch, const float* numbers, long N) {           // numbers: Eqn. 21
  long W = n->s.W, H = n->s.H, LW = n->LW, LH = n->LH;
  window b = {N, W, H, LW, LH};
  float** parts[] = {&b.F_x, &b.dF_x, &b.rows, &b.rows_hat, &b.drows, &b.drows_hat, &b.F_y, &b.dF_y, &b.mu_x, &b.mu_y};
  for (int k = 0; k < 10; k++) *parts[k] = scratch, scratch += N * (k < 6 ? LW : k < 8 ? LH : 1);
  b.sigma2 = exp1(clip(numbers[2], -20, 20)), b.gamma = exp1(numbers[4]);
  b.delta = (float)((W > H ? W : H) - 1) / (N > 1 ? N - 1 : 1) * exp1(clip(numbers[3], -20, 12));  // Eqn. 24
  for (long i = 0; i < N; i++) {
    float offset = (i + 0.5f - N / 2.f) * b.delta;
    b.mu_x[i] = (W + 1) / 2.f * (numbers[0] + 1) + offset;                                       // Eqns. 19, 22
    b.mu_y[i] = (H + 1) / 2.f * (numbers[1] + 1) + offset;                                       // Eqns. 20, 23
    filter(b.F_x + i * LW, b.mu_x[i], b.sigma2, W, LW);
    filter(b.F_y + i * LH, b.mu_y[i], b.sigma2, H, LH);
  }
  return b;
}
// The gradient of one filter: adds to those of mu and of log sigma^2
static void filter_back(const float* F, const float* dF, float mu, float sigma2, long most, float* dmu, float* dlog_sigma2) {
  lanes sum = no_lanes(), first = no_lanes(), second = no_lanes();
  dot(&sum, F, dF, most);
  float mean = total(&sum);
  for (long a = 0; a < most; a += LANES)
    for (int j = 0; j < LANES / VL; j++) {
      vec d = pixels_from(a + j * VL) - mu;
      vec slope = load(F + a + j * VL) * (load(dF + a + j * VL) - mean) * d;
      first.v[j] += slope, second.v[j] += slope * d;
    }
  *dmu += total(&first) / sigma2, *dlog_sigma2 += 0.5f / sigma2 * total(&second);
}
static void filterbank_back(const window* b, const float* numbers, float dlog_gamma, float* out) {
  float d[5] = {0, 0, 0, 0, dlog_gamma};
  for (long i = 0; i < b->N; i++) {
    float dx = 0, dy = 0;
    filter_back(b->F_x + i * b->LW, b->dF_x + i * b->LW, b->mu_x[i], b->sigma2, b->LW, &dx, d + 2);
    filter_back(b->F_y + i * b->LH, b->dF_y + i * b->LH, b->mu_y[i], b->sigma2, b->LH, &dy, d + 2);
    d[0] += dx * (b->W + 1) / 2.f, d[1] += dy * (b->H + 1) / 2.f;
    d[3] += (dx + dy) * (i + 0.5f - b->N / 2.f) * b->delta;
  }
  if (numbers[2] < -20 || numbers[2] > 20) d[2] = 0;  // clipped
  if (numbers[3] < -20 || numbers[3] > 12) d[3] = 0;
  memcpy(out, d, sizeof d);
}
static void filter_rows(const window* b, const float* image, float* rows) {                      // F_y image, (N, LW)
  for (long k = 0; k < b->N; k++)
    for (long a = 0; a < b->LW; a += VL) {
      vec sum = {0};
      for (long y = 0; y < b->H; y++) sum += b->F_y[k * b->LH + y] * load(image + y * b->LW + a);
      store(rows + k * b->LW + a, sum);
    }
}
static float across(const window* b, const float* rows, long k, long j) {                        // (rows F_x^T)(k, j)
  lanes sum = no_lanes();
  dot(&sum, rows + k * b->LW, b->F_x + j * b->LW, b->LW);
  return total(&sum);
}

static void glimpse_rows(const window* b, const float* x, const float* mean) {
  filter_rows(b, x, b->rows), filter_rows(b, mean, b->rows_hat);
  for (long a = 0; a < b->N * b->LW; a += VL) store(b->rows_hat + a, load(b->rows + a) - load(b->rows_hat + a));  // Eqn. 3
}
static void read_(const net* n, const window* b, const float* x, const float* mean, mat r) {     // Eqn. 27
  long N = b->N;
  glimpse_rows(b, x, mean);
  for (long k = 0; k < N; k++)
    for (long j = 0; j < N; j++) {
      *at(r, 0, k * N + j) = b->gamma * across(b, b->rows, k, j);
      *at(r, 0, N * N + k * N + j) = b->gamma * across(b, b->rows_hat, k, j);
    }
}
static void read_back(const net* n, const window* b, const float* x, const float* mean, mat r, mat dr, float* numbers,
                      float* dcanvas) {
  long N = b->N, LW = b->LW;
  float dlog_gamma = 0;
  glimpse_rows(b, x, mean);
  memset(b->dF_x, 0, 4 * N * LW), memset(b->dF_y, 0, 4 * N * b->LH);
  memset(b->drows, 0, 4 * N * LW), memset(b->drows_hat, 0, 4 * N * LW);  // with respect to F_y x, and to F_y mean
  for (long k = 0; k < N; k++)
    for (long j = 0; j < N; j++) {
      long e = k * N + j;
      float d = *at(dr, 0, e), d_hat = *at(dr, 0, N * N + e);
      dlog_gamma += d * *at(r, 0, e) + d_hat * *at(r, 0, N * N + e);
      axpy(b->drows + k * LW, b->gamma * (d + d_hat), b->F_x + j * LW, LW);
      axpy(b->drows_hat + k * LW, -b->gamma * d_hat, b->F_x + j * LW, LW);
      axpy(b->dF_x + j * LW, b->gamma * d, b->rows + k * LW, LW);
      axpy(b->dF_x + j * LW, b->gamma * d_hat, b->rows_hat + k * LW, LW);
    }
  for (long y = 0; y < b->H; y++) {
    const float* m = mean + y * LW;
    for (long k = 0; k < N; k++) {
      lanes sum = no_lanes();
      dot(&sum, b->drows + k * LW, x + y * LW, LW), dot(&sum, b->drows_hat + k * LW, m, LW);
      b->dF_y[k * b->LH + y] = total(&sum);
    }
    for (long a = 0; a < LW; a += VL) {
      vec dmean = {0};
      for (long k = 0; k < N; k++) dmean += b->F_y[k * b->LH + y] * load(b->drows_hat + k * LW + a);
      store(dcanvas + y * LW + a, load(dcanvas + y * LW + a) + dmean * load(m + a) * (1 - load(m + a)));
    }
  }
  filterbank_back(b, numbers, dlog_gamma, numbers);
}
static void patch_rows(const window* b, mat patch) {                                             // w_t F_x / gamma^
  memset(b->rows, 0, 4 * b->N * b->LW);
  for (long k = 0; k < b->N; k++)
    for (long j = 0; j < b->N; j++)
      axpy(b->rows + k * b->LW, *at(patch, 0, k * b->N + j) / b->gamma, b->F_x + j * b->LW, b->LW);
}
static void write_(const window* b, mat patch, float* canvas) {                                  // Eqns. 8, 29
  patch_rows(b, patch);
  for (long y = 0; y < b->H; y++)
    for (long a = 0; a < b->LW; a += VL) {
      vec sum = load(canvas + y * b->LW + a);
      for (long k = 0; k < b->N; k++) sum += b->F_y[k * b->LH + y] * load(b->rows + k * b->LW + a);
      store(canvas + y * b->LW + a, sum);
    }
}
static void write_back(const window* b, mat patch, float* numbers, const float* dcanvas) {
  long N = b->N, LW = b->LW;
  float dlog_gamma = 0;
  patch_rows(b, patch);
  memset(b->dF_x, 0, 4 * N * LW), memset(b->dF_y, 0, 4 * N * b->LH);
  filter_rows(b, dcanvas, b->drows);
  for (long y = 0; y < b->H; y++)
    for (long k = 0; k < N; k++) {
      lanes sum = no_lanes();
      dot(&sum, b->rows + k * LW, dcanvas + y * LW, LW);
      b->dF_y[k * b->LH + y] = total(&sum);
    }
  for (long k = 0; k < N; k++)
    for (long j = 0; j < N; j++) {
      float *w = at(patch, 0, k * N + j), scaled = *w / b->gamma, d = across(b, b->drows, k, j);
      axpy(b->dF_x + j * LW, scaled, b->drows + k * LW, LW);
      dlog_gamma -= d * scaled, *w = d / b->gamma;
    }
  filterbank_back(b, numbers, dlog_gamma, numbers);
}

// ---- the recurrence

static void lstm(mat g, mat c_before, mat c, mat h, long rows, long U) {  // the gates become their activations
  EACH(U, rows, i, u) {
    float* gate[4];
    for (int k = 0; k < 4; k++) gate[k] = at(right(g, k * up(U, P)), i, u);
    vec input = sigmoid(load(gate[0])), forget = sigmoid(load(gate[1])), output = sigmoid(load(gate[2]));
    vec candidate = tanh_(load(gate[3])), next = forget * load(at(c_before, i, u)) + input * candidate;
    store(gate[0], input), store(gate[1], forget), store(gate[2], output), store(gate[3], candidate);
    store(at(c, i, u), next), store(at(h, i, u), output * tanh_(next));
  }
}
static void lstm_back(mat g, mat c_before, mat c, mat dh, mat dc, long rows, long U) {  // they become their gradients
  EACH(U, rows, i, u) {
    float* gate[4];
    for (int k = 0; k < 4; k++) gate[k] = at(right(g, k * up(U, P)), i, u);
    vec input = load(gate[0]), forget = load(gate[1]), output = load(gate[2]), candidate = load(gate[3]);
    vec squashed = tanh_(load(at(c, i, u))), d = load(at(dh, i, u));
    vec before = load(at(dc, i, u)) + d * output * (1 - squashed * squashed);  // of c_t
    store(gate[0], before * candidate * input * (1 - input));
    store(gate[1], before * load(at(c_before, i, u)) * forget * (1 - forget));
    store(gate[2], d * squashed * output * (1 - output));
    store(gate[3], before * input * (1 - candidate * candidate));
    store(at(dc, i, u), before * forget);
  }
}

static term forward_term(const net* n, mat in, int l) { return (term){in, n->w_t[l], n->layers[l].K}; }
static void apply(const net* n, int l, const term* terms, int count, mat init, mat out, long rows) {
  product(terms, count, init, out, rows, n->layers[l].groups, n->layers[l].size);
}
static void first_state(mat m, const float* row, long rows, long U) {
  for (long i = 0; i < rows; i++) to_panels(below(m, i), row, 1, U);
}

// Some images, the first being number b0, through all steps
static void forward_rows(const net* n, long b0, long rows, const float** params, const float* x, const float* eps,
                         float* canvas, float* mu, float* log_sigma, float* scratch) {
  const sizes* s = &n->s;
  long U = s->U, Z = s->Z, pixels = s->H * n->LW;
  mat states[STATES] = {n->h_enc, n->c_enc, n->h_dec, n->c_dec}, image = below(n->canvas, b0), x_rows = below(n->x, b0);
  mat enc_init = n->bias[R_TO_ENC];
  for (int k = 0; k < STATES; k++) first_state(step_of(n, states[k], 0, b0), params[2 * LAYERS + k], rows, U);
  if (s->attention) {
    memset(n->canvas_image + b0 * pixels, 0, 4 * rows * pixels);
    for (long i = 0; i < rows * s->H; i++) memcpy(n->x_image + (b0 * s->H + i) * n->LW, x + (b0 * s->H + i) * s->W, 4 * s->W);
  } else {
    to_panels(x_rows, x + b0 * n->D, rows, n->D);
    EACH(n->D, rows, i, j) store(at(image, i, j), splat(0));
    term terms[] = {forward_term(n, x_rows, X_TO_ENC)};
    enc_init = below(n->x_gates, b0), enc_init.step = P;
    apply(n, X_TO_ENC, terms, 1, n->bias[R_TO_ENC], enc_init, rows);
  }
  for (long t = 1; t <= s->T; t++) {
    mat h_enc = step_of(n, n->h_enc, t - 1, b0), h_enc_t = step_of(n, n->h_enc, t, b0), h_dec = step_of(n, n->h_dec, t - 1, b0);
    mat h_dec_t = step_of(n, n->h_dec, t, b0), r = step_of(n, n->r, t, b0), q = step_of(n, n->q, t, b0);
    mat log_sigmas = right(q, up(Z, P)), noise = step_of(n, n->eps, t, b0), z = step_of(n, n->z, t, b0);
    mat g_enc = step_of(n, n->g_enc, t, b0), g_dec = step_of(n, n->g_dec, t, b0), patch = step_of(n, n->write, t, b0);
    if (s->attention) {
      mat numbers = step_of(n, n->read_window, t, b0);
      term terms[] = {forward_term(n, h_dec, READ_WINDOW)};
      apply(n, READ_WINDOW, terms, 1, n->bias[READ_WINDOW], numbers, rows);                      // Eqn. 21
      for (long i = 0; i < rows; i++) {
        float *mean = n->mean + (slot(n, t) + b0 + i) * pixels, *c = n->canvas_image + (b0 + i) * pixels;
        for (long a = 0; a < pixels; a += VL) store(mean + a, sigmoid(load(c + a)));
        window b = filterbank(n, scratch, at(numbers, i, 0), s->N_read);
        read_(n, &b, n->x_image + (b0 + i) * pixels, mean, below(r, i));
      }
    } else
      EACH(n->D, rows, i, j) store(at(r, i, j), load(at(x_rows, i, j)) - sigmoid(load(at(image, i, j))));  // Eqn. 3
    term enc[] = {forward_term(n, r, R_TO_ENC), forward_term(n, h_dec, H_DEC_TO_ENC), forward_term(n, h_enc, H_ENC_TO_ENC)};
    apply(n, R_TO_ENC, enc, 3, enc_init, g_enc, rows);
    lstm(g_enc, step_of(n, n->c_enc, t - 1, b0), step_of(n, n->c_enc, t, b0), h_enc_t, rows, U);  // Eqn. 5
    term to_q[] = {forward_term(n, h_enc_t, H_ENC_TO_Q)};
    apply(n, H_ENC_TO_Q, to_q, 1, n->bias[H_ENC_TO_Q], q, rows);                                 // Eqns. 1-2
    from_panels(mu + ((t - 1) * s->B + b0) * Z, q, rows, Z);
    from_panels(log_sigma + ((t - 1) * s->B + b0) * Z, log_sigmas, rows, Z);
    to_panels(noise, eps + ((t - 1) * s->B + b0) * Z, rows, Z);
    EACH(Z, rows, i, k)                                                                          // Eqn. 6
      store(at(z, i, k), load(at(q, i, k)) + exp_(load(at(log_sigmas, i, k))) * load(at(noise, i, k)));
    term dec[] = {forward_term(n, z, Z_TO_DEC), forward_term(n, h_dec, H_DEC_TO_DEC)};
    apply(n, Z_TO_DEC, dec, 2, n->bias[Z_TO_DEC], g_dec, rows);
    lstm(g_dec, step_of(n, n->c_dec, t - 1, b0), step_of(n, n->c_dec, t, b0), h_dec_t, rows, U);  // Eqn. 7
    term write[] = {forward_term(n, h_dec_t, WRITE)};
    if (s->attention) {
      mat numbers = step_of(n, n->write_window, t, b0);
      term terms[] = {forward_term(n, h_dec_t, WRITE_WINDOW)};
      apply(n, WRITE_WINDOW, terms, 1, n->bias[WRITE_WINDOW], numbers, rows);                    // Eqn. 21
      apply(n, WRITE, write, 1, n->bias[WRITE], patch, rows);                                    // Eqn. 28
      for (long i = 0; i < rows; i++) {
        window b = filterbank(n, scratch, at(numbers, i, 0), s->N_write);
        write_(&b, below(patch, i), n->canvas_image + (b0 + i) * pixels);
      }
    } else {
      apply(n, WRITE, write, 1, n->bias[WRITE], patch, rows);                                    // Eqn. 18
      EACH(n->D, rows, i, j) store(at(image, i, j), load(at(image, i, j)) + load(at(patch, i, j)));  // Eqn. 8
    }
  }
  if (s->attention)
    for (long i = 0; i < rows * s->H; i++)
      memcpy(canvas + (b0 * s->H + i) * s->W, n->canvas_image + (b0 * s->H + i) * n->LW, 4 * s->W);
  else
    from_panels(canvas + b0 * n->D, image, rows, n->D);
}

// Add the terms by which the gradient of a layer's output becomes one of its input; returns how many terms there are then.
static int backward_terms(const net* n, term* terms, int count, mat out, int l) {
  for (long g = 0; g < n->layers[l].groups; g++) {
    long row = g * up(n->layers[l].size, P);
    terms[count++] = (term){right(out, row), below(n->w[l], row), n->layers[l].size};
  }
  return count;
}

static void backward_rows(const net* n, long b0, long rows, const float* dcanvas, const float* dmu,
                          const float* dlog_sigma, float* scratch) {
  const sizes* s = &n->s;
  long U = s->U, Z = s->Z, pixels = s->H * n->LW;
  mat dh_enc = below(n->d[0], b0), dc_enc = below(n->d[1], b0), dh_dec = below(n->d[2], b0), dc_dec = below(n->d[3], b0);
  mat image = below(n->canvas, b0), dx_gates = below(n->x_gates, b0), none = {0}, dz = below(n->dz, b0), dr = below(n->dr, b0);
  mat own_dmu = below(n->dmu, b0), own_dlog = below(n->dlog_sigma, b0), later_enc = none;
  mat later_dec = none, later_window = none;
  term terms[MOST_TERMS];
  EACH(U, rows, i, u) store(at(dc_enc, i, u), splat(0)), store(at(dc_dec, i, u), splat(0));
  if (s->attention)
    for (long i = 0; i < rows * s->H; i++)
      memcpy(n->canvas_image + (b0 * s->H + i) * n->LW, dcanvas + (b0 * s->H + i) * s->W, 4 * s->W);
  else {
    to_panels(image, dcanvas + b0 * n->D, rows, n->D);
    EACH(4 * up(U, P), rows, i, u) store(at(dx_gates, i, u), splat(0));
  }
  for (long t = s->T; t >= 0; t--) {  // step 0: the initial states
    mat q = step_of(n, n->q, t, b0), log_sigmas = right(q, up(Z, P)), patch = step_of(n, n->write, t, b0);
    mat g_enc = step_of(n, n->g_enc, t, b0), g_dec = step_of(n, n->g_dec, t, b0), r = step_of(n, n->r, t, b0);
    mat write_window = step_of(n, n->write_window, t, b0), read_window = step_of(n, n->read_window, t, b0);
    mat noise = step_of(n, n->eps, t, b0);
    int count = 0;
    if (t > 0) {
      if (s->attention)
        for (long i = 0; i < rows; i++) {
          float* numbers = at(write_window, i, 0);
          window b = filterbank(n, scratch, numbers, s->N_write);
          write_back(&b, below(patch, i), numbers, n->canvas_image + (b0 + i) * pixels);
        }
      else
        EACH(n->D, rows, i, j) store(at(patch, i, j), load(at(image, i, j)));
      count = backward_terms(n, terms, count, patch, WRITE);
      count = backward_terms(n, terms, count, write_window, WRITE_WINDOW);
    }
    if (t < s->T) {
      count = backward_terms(n, terms, count, later_dec, H_DEC_TO_DEC);
      count = backward_terms(n, terms, count, later_enc, H_DEC_TO_ENC);
      count = backward_terms(n, terms, count, later_window, READ_WINDOW);
    }
    product(terms, count, none, dh_dec, rows, 1, U);
    count = t < s->T ? backward_terms(n, terms, 0, later_enc, H_ENC_TO_ENC) : 0;
    if (t > 0) {
      lstm_back(g_dec, step_of(n, n->c_dec, t - 1, b0), step_of(n, n->c_dec, t, b0), dh_dec, dc_dec, rows, U);
      term to_z[MOST_TERMS];
      product(to_z, backward_terms(n, to_z, 0, g_dec, Z_TO_DEC), none, dz, rows, 1, Z);
      long first = ((t - 1) * s->B + b0) * Z;
      to_panels(own_dmu, dmu + first, rows, Z), to_panels(own_dlog, dlog_sigma + first, rows, Z);
      EACH(Z, rows, i, k) {
        vec d = load(at(dz, i, k)), sigma = exp_(load(at(log_sigmas, i, k)));
        store(at(q, i, k), d + load(at(own_dmu, i, k)));
        store(at(log_sigmas, i, k), d * load(at(noise, i, k)) * sigma + load(at(own_dlog, i, k)));
      }
      count = backward_terms(n, terms, count, q, H_ENC_TO_Q);
    }
    product(terms, count, none, dh_enc, rows, 1, U);
    if (t == 0) break;
    lstm_back(g_enc, step_of(n, n->c_enc, t - 1, b0), step_of(n, n->c_enc, t, b0), dh_enc, dc_enc, rows, U);
    product(terms, backward_terms(n, terms, 0, g_enc, R_TO_ENC), none, dr, rows, 1, n->R);
    if (s->attention)
      for (long i = 0; i < rows; i++) {
        float *mean = n->mean + (slot(n, t) + b0 + i) * pixels, *numbers = at(read_window, i, 0);
        window b = filterbank(n, scratch, numbers, s->N_read);
        read_back(n, &b, n->x_image + (b0 + i) * pixels, mean, below(r, i), below(dr, i), numbers, n->canvas_image + (b0 + i) * pixels);
      }
    else {
      EACH(4 * up(U, P), rows, i, u) store(at(dx_gates, i, u), load(at(dx_gates, i, u)) + load(at(g_enc, i, u)));
      mat x = below(n->x, b0);
      EACH(n->D, rows, i, j) {
        vec mean = load(at(x, i, j)) - load(at(r, i, j));
        store(at(image, i, j), load(at(image, i, j)) - load(at(dr, i, j)) * mean * (1 - mean));
      }
    }
    later_enc = g_enc, later_dec = g_dec, later_window = read_window;
  }
}

// The gradients of up to GROUP panels of a layer's outputs: of the weight, out^T in over all steps and images, in the place
// of the packed weight; and of the bias
static void weight_back(const net* n, long task, float** gradients) {
  long panel, row, rows;
  int l = locate(n, task, &panel, &row, &rows);
  if (panel % GROUP) return;
  const long K = n->layers[l].K, end = least(panel + GROUP, panels(n->layers + l)), R = (l == X_TO_ENC ? 1 : n->s.T) * n->s.B;
  const mat outs[LAYERS] = {n->g_enc, n->x_gates, n->g_enc, n->g_enc, n->q, n->g_dec, n->g_dec, n->write, n->read_window, n->write_window};
  const mat ins[LAYERS] = {n->r, n->x, n->h_dec, n->h_enc, n->h_enc, n->z, n->h_dec, n->h_dec, n->h_dec, n->h_dec};
  const int before[LAYERS] = {0, 0, 1, 1, 0, 0, 1, 0, 1, 0};  // h_{t-1} goes in
  long first = l == X_TO_ENC ? 0 : n->s.B;
  mat out = below(outs[l], first), in = below(ins[l], before[l] ? 0 : first);
  for (long r0 = 0; r0 < R; r0 += BLOCK)
    for (long k = 0; k < K; k += NV * VL)
      for (long p = panel; p < end; p++)
        for (long i = 0, m; i < P; i += m) {
          m = tile_rows(P - i);
          term terms[] = {{below(right(out, p * P), r0), below(in, r0), least(BLOCK, R - r0)}};
          terms[0].a.p += i;
          float* sums = at(n->w[l], p * P + i, k);
          tiles(1, m, K - k, terms, 1, k, r0 ? sums : 0, P, sums);
        }
  for (long p = panel; p < end; p++, task++) {
    locate(n, task, &panel, &row, &rows);
    from_panels(gradients[2 * l] + row * K, (mat){at(n->w[l], p * P, 0), n->w[l].stride, P}, rows, K);
    vec sums[P / VL];
    memset(sums, 0, sizeof sums);
    for (long i = 0; i < R; i++)
      for (int j = 0; j < P / VL; j++) sums[j] += load(at(out, i, p * P + j * VL));
    if (gradients[2 * l + 1]) memcpy(gradients[2 * l + 1] + row, sums, 4 * rows);
  }
}

// ---- what Python calls

long draw_floats(const sizes* s) { return lay_out(s, 0).used; }  // size of the memory, zero at first, of the other two

// params: weight and bias of each layer in the order of their numbers, and the initial states; 0 where there is none
void draw_forward(const sizes* s, const float** params, const float* x, const float* eps, float* memory, float* canvas,
                  float* mu, float* log_sigma) {
  const net n = lay_out(s, memory);
#pragma omp parallel num_threads(s->threads)
  {
#pragma omp for schedule(dynamic)
    for (long task = 0; task < num_tasks(&n); task++) pack(&n, task, params);
#pragma omp for schedule(dynamic)
    for (long b0 = 0; b0 < s->B; b0 += s->chunk)
      forward_rows(&n, b0, least(s->chunk, s->B - b0), params, x, eps, canvas, mu, log_sigma,
                   n.scratch + omp_get_thread_num() * n.num_scratch);
  }
}

// Once after draw_forward with `keep`, in the same memory; gradients are in the order of params.
void draw_backward(const sizes* s, float* memory, const float* dcanvas, const float* dmu, const float* dlog_sigma,
                   float** gradients) {
  const net n = lay_out(s, memory);
#pragma omp parallel num_threads(s->threads)
  {
#pragma omp for schedule(dynamic)
    for (long b0 = 0; b0 < s->B; b0 += s->chunk)
      backward_rows(&n, b0, least(s->chunk, s->B - b0), dcanvas, dmu, dlog_sigma,
                    n.scratch + omp_get_thread_num() * n.num_scratch);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < num_tasks(&n); task++) weight_back(&n, task, gradients);
  }
  for (int k = 0; k < STATES; k++)
    for (long u = 0; u < s->U; u++) {
      float sum = 0;
      for (long i = 0; i < s->B; i++) sum += *at(n.d[k], i, u);
      gradients[2 * LAYERS + k][u] = sum;
    }
}
