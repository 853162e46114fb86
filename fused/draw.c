// core.DRAW as one operator on the CPU: its forward pass and its gradient through all time steps. Equation numbers are
// those of arXiv:1502.04623, names those of core.py.
//
// Why it is fast: (1) every weight is packed once per call, and used at all T steps; (2) a thread takes some images of
// the batch through all steps, forward or backward, and waits for no other; (3) the gradients of all steps' gates are
// kept, so that the gradient of each weight is one product over T * batch rows.
//
// Each of the four gates begins a new panel (panels.h), and so do mu and log_sigma. Every sum has a fixed order, so
// results depend neither on the number of threads nor on the width of vectors.
#include <omp.h>
#include <xmmintrin.h>

#include "panels.h"

enum { BLOCK = 256, GROUP = 4 };  // of a weight's gradient: rows, and panels of outputs, that stay in the cache

// ---- the network

typedef struct { long T, B, U, Z, H, W, attention, N_read, N_write, keep, threads, chunk; } sizes;
enum {  // layers, in the order of their parameters; WRITE is write.image or write.patch
  R_TO_ENC, X_TO_ENC, H_DEC_TO_ENC, H_ENC_TO_ENC, H_ENC_TO_Q, Z_TO_DEC, H_DEC_TO_DEC, WRITE, READ_WINDOW, WRITE_WINDOW,
  LAYERS,
  STATES = 4  // h_enc, c_enc, h_dec, c_dec
};
typedef struct { long groups, size, K; } layer;  // of a weight (groups * size, K); no groups: not in this network
typedef struct { int layer; mat m; } flow;       // what goes into a layer, or the gradient of what comes out of it
typedef struct {
  sizes s;
  long D, LW, LH, R;  // pixels; width and height in whole vectors; size of r_t (without attention of x_hat_t alone)
  layer layers[LAYERS];
  mat w_t[LAYERS], w[LAYERS], bias[LAYERS];  // w_t: transposed, for the forward pass; w: for the backward pass
  // Of all steps: rows t * batch + image. In the backward pass gradients take the place of gates, q, write and windows.
  mat r, g_enc, h_enc, c_enc, q, eps, z, g_dec, h_dec, c_dec, write, read_window, write_window;
  mat x, x_gates, canvas;                    // of one step, without attention
  float *x_image, *canvas_image, *mean;      // with attention: images, rows of LW; mean: sigmoid(c_{t-1}) of all steps
  mat dz, dr, dmu, dlog_sigma, d[STATES];    // of one step
  float *scratch, *base;                     // scratch: num_scratch floats for each thread
  long num_scratch, used;
} net;

static float* take(net* n, long floats) {
  float* p = n->base ? n->base + n->used : 0;
  n->used += up(floats, LANES);
  return p;
}
static mat matrix(net* n, long rows, long columns) {
  rows |= 1;  // odd: or else the panels of a row would compete for the same sets of the cache
  return (mat){take(n, rows * up(columns, P)), rows * P, P};
}
static long panels(const layer* l) { return l->groups * up(l->size, P) / P; }

static net lay_out(const sizes* s, float* base) {
  net n = {.s = *s, .base = base, .D = s->H * s->W, .LW = up(s->W, LANES), .LH = up(s->H, LANES)};
  long B = s->B, U = s->U, Z = s->Z, rows = (s->keep ? s->T + 1 : 2) * B, gates = 4 * up(U, P), pixels = s->H * n.LW;
  n.R = s->attention ? 2 * s->N_read * s->N_read : n.D;
  const layer layers[LAYERS] = {
      [R_TO_ENC] = {4, U, n.R},     [X_TO_ENC] = {s->attention ? 0 : 4, U, n.D}, [H_DEC_TO_ENC] = {4, U, U},
      [H_ENC_TO_ENC] = {4, U, U},   [H_ENC_TO_Q] = {2, Z, U},                    [Z_TO_DEC] = {4, U, Z},
      [H_DEC_TO_DEC] = {4, U, U},   [WRITE] = {1, s->attention ? s->N_write * s->N_write : n.D, U},
      [READ_WINDOW] = {s->attention ? 1 : 0, 5, U}, [WRITE_WINDOW] = {s->attention ? 1 : 0, 5, U}};
  memcpy(n.layers, layers, sizeof layers);
  for (int l = 0; l < LAYERS; l++) {
    long N = P * panels(layers + l), K = layers[l].K;
    n.bias[l] = (mat){take(&n, N), P, 0};
    n.w_t[l] = (mat){take(&n, N * K), P * K, P};
    if (s->keep) n.w[l] = (mat){take(&n, N * up(K, P)), P * N, P};
  }
  mat* of_all_steps[] = {&n.r,     &n.g_enc, &n.h_enc, &n.c_enc, &n.q,           &n.eps,         &n.z,
                         &n.g_dec, &n.h_dec, &n.c_dec, &n.write, &n.read_window, &n.write_window};
  long columns[] = {n.R, gates, U, U, 2 * up(Z, P), Z, Z, gates, U, U, layers[WRITE].size, 5, 5};
  for (int k = 0; k < 13; k++) *of_all_steps[k] = matrix(&n, rows, columns[k]);
  for (int k = 0; k < STATES; k++) n.d[k] = matrix(&n, B, U);
  n.dz = matrix(&n, B, Z), n.dmu = matrix(&n, B, Z), n.dlog_sigma = matrix(&n, B, Z), n.dr = matrix(&n, B, n.R);
  if (s->attention) {
    n.x_image = take(&n, B * pixels), n.canvas_image = take(&n, B * pixels), n.mean = take(&n, rows * pixels);
    n.num_scratch = (s->N_read > s->N_write ? s->N_read : s->N_write) * (6 * n.LW + 2 * n.LH + LANES);
    n.scratch = take(&n, n.num_scratch * s->threads);
  } else
    n.x = matrix(&n, B, n.D), n.x_gates = matrix(&n, B, gates), n.canvas = matrix(&n, B, n.D);
  return n;
}

static long row_of(const net* n, long t) { return (n->s.keep ? t : t % 2) * n->s.B; }  // the first one of step t

// A task is one panel, up to 32 outputs, of one layer; tasks are numbered through all layers. Returns the layer, its
// panel, and the rows of its weight.
static int locate(const net* n, long task, long* panel, long* row, long* rows) {
  int l = 0;
  for (; task >= panels(n->layers + l); l++) task -= panels(n->layers + l);
  long size = n->layers[l].size, each = up(size, P) / P, first = task % each * P;
  *panel = task, *row = task / each * size + first, *rows = least(P, size - first);
  return l;
}
static long num_tasks(const net* n) {
  long tasks = 0;
  for (int l = 0; l < LAYERS; l++) tasks += panels(n->layers + l);
  return tasks;
}
static void pack(const net* n, long task, const float** params) {
  long panel, row, rows;
  int l = locate(n, task, &panel, &row, &rows);
  long K = n->layers[l].K;
  const float *weight = params[2 * l] + row * K, *bias = params[2 * l + 1];
  float* out = n->w_t[l].p + panel * n->w_t[l].stride;
  for (long k = 0; k < K; k++)
    for (long i = 0; i < rows; i++) out[k * P + i] = weight[i * K + k];
  if (n->s.keep) to_panels(below(n->w[l], panel * P), weight, rows, K);
  if (bias) memcpy(n->bias[l].p + panel * P, bias + row, 4 * rows);
}

// out = init + the sum of the layers' products with their inputs; all these layers have outputs of one kind.
static void apply(const net* n, mat out, long rows, mat init, const flow* inputs, int count) {
  term terms[MOST_TERMS];
  for (int k = 0; k < count; k++) {
    int l = inputs[k].layer;
    terms[k] = (term){inputs[k].m, n->w_t[l], n->layers[l].K};
  }
  const layer* first = n->layers + inputs[0].layer;
  product(out, rows, first->groups, first->size, init, terms, count);
}
// out (rows, columns) = the gradient of an input, from those of the outputs of the layers that it goes into
static void gradient(const net* n, mat out, long rows, long columns, const flow* outputs, int count) {
  term terms[MOST_TERMS];
  int used = 0;
  for (int k = 0; k < count; k++) {
    const layer* l = n->layers + outputs[k].layer;
    for (long g = 0, row = 0; g < l->groups; g++, row += up(l->size, P))
      terms[used++] = (term){right(outputs[k].m, row), below(n->w[outputs[k].layer], row), l->size};
  }
  product(out, rows, 1, columns, (mat){0}, terms, used);
}

// ---- selective attention of one image; F_x is (N, LW), F_y (N, LH), both zero beyond the image

typedef struct {
  long N, W, H, LW, LH;
  float *F_x, *F_y, *mu_x, *mu_y, *dF_x, *dF_y, *rows, *rows_hat, *drows, *drows_hat;  // rows: (N, LW)
  float sigma2, delta, gamma;
} window;

static float clip(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
static void filter(float* F, float mu, float sigma2, long L, long most) {                        // Eqns. 25-26
  // The largest exponent, that of the pixel nearest to mu, is subtracted from each, factored so that nothing cancels.
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
  window b = {.N = N, .W = W, .H = H, .LW = LW, .LH = LH};
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
static void filter_back(const float* F, const float* dF, float mu, float sigma2, long most, float* dmu,
                        float* dlog_sigma2) {
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
  for (long a = 0; a < b->N * b->LW; a += VL)                                                    // Eqn. 3
    store(b->rows_hat + a, load(b->rows + a) - load(b->rows_hat + a));
}
static void read_(const window* b, const float* x, const float* mean, mat r) {     // Eqn. 27
  long N = b->N;
  glimpse_rows(b, x, mean);
  for (long k = 0; k < N; k++)
    for (long j = 0; j < N; j++) {
      *at(r, 0, k * N + j) = b->gamma * across(b, b->rows, k, j);
      *at(r, 0, N * N + k * N + j) = b->gamma * across(b, b->rows_hat, k, j);
    }
}
static void read_back(const window* b, const float* x, const float* mean, mat r, mat dr, float* numbers,
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
  EACH(rows, U, i, u) {
    float* gate[4];
    for (int k = 0; k < 4; k++) gate[k] = at(right(g, k * up(U, P)), i, u);
    vec input = sigmoid(load(gate[0])), forget = sigmoid(load(gate[1])), output = sigmoid(load(gate[2]));
    vec candidate = tanh_(load(gate[3])), next = forget * load(at(c_before, i, u)) + input * candidate;
    store(gate[0], input), store(gate[1], forget), store(gate[2], output), store(gate[3], candidate);
    store(at(c, i, u), next), store(at(h, i, u), output * tanh_(next));
  }
}
static void lstm_back(mat g, mat c_before, mat c, mat dh, mat dc, long rows, long U) {  // they become gradients
  EACH(rows, U, i, u) {
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

// Step t of the images from number b0 on, and several flows as an array with its length
#define AT(m, t) below(n->m, row_of(n, t) + b0)
#define FLOWS(...) (const flow[]){__VA_ARGS__}, sizeof(const flow[]){__VA_ARGS__} / sizeof(flow)

// `rows` images, the first being number b0, through all steps
static void forward_rows(const net* n, long b0, long rows, const float** params, const float* x, const float* eps,
                         float* canvas, float* mu, float* log_sigma, float* scratch) {
  const sizes* s = &n->s;
  const long U = s->U, Z = s->Z, D = n->D, LW = n->LW, pixels = s->H * LW, first = b0 * s->H;
  const mat states[STATES] = {AT(h_enc, 0), AT(c_enc, 0), AT(h_dec, 0), AT(c_dec, 0)};
  mat x_rows = below(n->x, b0), image = below(n->canvas, b0), enc_init = n->bias[R_TO_ENC];
  float *x_images = n->x_image + b0 * pixels, *c = n->canvas_image + b0 * pixels;
  for (int k = 0; k < STATES; k++)
    for (long i = 0; i < rows; i++) to_panels(below(states[k], i), params[2 * LAYERS + k], 1, U);
  if (s->attention) {
    memset(c, 0, 4 * rows * pixels);
    for (long y = 0; y < rows * s->H; y++) memcpy(x_images + y * LW, x + (first + y) * s->W, 4 * s->W);
  } else {
    to_panels(x_rows, x + b0 * D, rows, D);
    EACH(rows, D, i, j) store(at(image, i, j), splat(0));
    enc_init = below(n->x_gates, b0);  // the part of the gates that is the same at every step
    apply(n, enc_init, rows, n->bias[R_TO_ENC], FLOWS({X_TO_ENC, x_rows}));
  }
  for (long t = 1; t <= s->T; t++) {
    const long row = (t - 1) * s->B + b0;
    const mat r = AT(r, t), q = AT(q, t), log_sigmas = right(q, up(Z, P)), noise = AT(eps, t), z = AT(z, t);
    const mat patch = AT(write, t), h_enc = AT(h_enc, t), h_dec = AT(h_dec, t), h_dec_before = AT(h_dec, t - 1);
    if (s->attention) {
      const mat numbers = AT(read_window, t);
      apply(n, numbers, rows, n->bias[READ_WINDOW], FLOWS({READ_WINDOW, h_dec_before}));         // Eqn. 21
      for (long i = 0; i < rows; i++) {
        float* mean = n->mean + (row_of(n, t) + b0 + i) * pixels;
        for (long a = 0; a < pixels; a += VL) store(mean + a, sigmoid(load(c + i * pixels + a)));
        const window b = filterbank(n, scratch, at(numbers, i, 0), s->N_read);
        read_(&b, x_images + i * pixels, mean, below(r, i));                                     // Eqns. 3-4
      }
    } else
      EACH(rows, D, i, j) store(at(r, i, j), load(at(x_rows, i, j)) - sigmoid(load(at(image, i, j))));  // Eqn. 3
    apply(n, AT(g_enc, t), rows, enc_init,
          FLOWS({R_TO_ENC, r}, {H_DEC_TO_ENC, h_dec_before}, {H_ENC_TO_ENC, AT(h_enc, t - 1)}));
    lstm(AT(g_enc, t), AT(c_enc, t - 1), AT(c_enc, t), h_enc, rows, U);                          // Eqn. 5
    apply(n, q, rows, n->bias[H_ENC_TO_Q], FLOWS({H_ENC_TO_Q, h_enc}));                          // Eqns. 1-2
    from_panels(mu + row * Z, q, rows, Z), from_panels(log_sigma + row * Z, log_sigmas, rows, Z);
    to_panels(noise, eps + row * Z, rows, Z);
    EACH(rows, Z, i, k)                                                                          // Eqn. 6
      store(at(z, i, k), load(at(q, i, k)) + exp_(load(at(log_sigmas, i, k))) * load(at(noise, i, k)));
    apply(n, AT(g_dec, t), rows, n->bias[Z_TO_DEC], FLOWS({Z_TO_DEC, z}, {H_DEC_TO_DEC, h_dec_before}));
    lstm(AT(g_dec, t), AT(c_dec, t - 1), AT(c_dec, t), h_dec, rows, U);                          // Eqn. 7
    apply(n, patch, rows, n->bias[WRITE], FLOWS({WRITE, h_dec}));                                // Eqns. 18, 28
    if (s->attention) {
      const mat numbers = AT(write_window, t);
      apply(n, numbers, rows, n->bias[WRITE_WINDOW], FLOWS({WRITE_WINDOW, h_dec}));              // Eqn. 21
      for (long i = 0; i < rows; i++) {
        const window b = filterbank(n, scratch, at(numbers, i, 0), s->N_write);
        write_(&b, below(patch, i), c + i * pixels);                                             // Eqn. 8
      }
    } else
      EACH(rows, D, i, j) store(at(image, i, j), load(at(image, i, j)) + load(at(patch, i, j)));  // Eqn. 8
  }
  if (s->attention)
    for (long y = 0; y < rows * s->H; y++) memcpy(canvas + (first + y) * s->W, c + y * LW, 4 * s->W);
  else
    from_panels(canvas + b0 * D, image, rows, D);
}

// The same images backward: from the gradients of canvas, mu and log_sigma to those of all layers' outputs, and of the
// initial states, n->d
static void backward_rows(const net* n, long b0, long rows, const float* dcanvas, const float* dmu,
                          const float* dlog_sigma, float* scratch) {
  const sizes* s = &n->s;
  const long U = s->U, Z = s->Z, D = n->D, LW = n->LW, pixels = s->H * LW, first = b0 * s->H;
  const mat dh_enc = below(n->d[0], b0), dc_enc = below(n->d[1], b0), dh_dec = below(n->d[2], b0);
  const mat dc_dec = below(n->d[3], b0), dz = below(n->dz, b0), dr = below(n->dr, b0), own_dmu = below(n->dmu, b0);
  const mat own_dlog_sigma = below(n->dlog_sigma, b0), x = below(n->x, b0), image = below(n->canvas, b0);
  const mat dx_gates = below(n->x_gates, b0);
  float *x_images = n->x_image + b0 * pixels, *dc = n->canvas_image + b0 * pixels;
  EACH(rows, U, i, u) store(at(dc_enc, i, u), splat(0)), store(at(dc_dec, i, u), splat(0));
  if (s->attention)
    for (long y = 0; y < rows * s->H; y++) memcpy(dc + y * LW, dcanvas + (first + y) * s->W, 4 * s->W);
  else {
    to_panels(image, dcanvas + b0 * D, rows, D);
    EACH(rows, 4 * up(U, P), i, u) store(at(dx_gates, i, u), splat(0));
  }
  for (long t = s->T; t >= 0; t--) {  // t = 0: the initial states only
    const mat q = AT(q, t), log_sigmas = right(q, up(Z, P)), noise = AT(eps, t), patch = AT(write, t), r = AT(r, t);
    const mat g_enc = AT(g_enc, t), g_dec = AT(g_dec, t);
    if (t > 0 && s->attention)
      for (long i = 0; i < rows; i++) {
        float* numbers = at(AT(write_window, t), i, 0);
        const window b = filterbank(n, scratch, numbers, s->N_write);
        write_back(&b, below(patch, i), numbers, dc + i * pixels);
      }
    else if (t > 0)
      EACH(rows, D, i, j) store(at(patch, i, j), load(at(image, i, j)));
    const flow from_h_dec[] = {{WRITE, patch}, {WRITE_WINDOW, AT(write_window, t)},
                               {H_DEC_TO_DEC, AT(g_dec, t + 1)}, {H_DEC_TO_ENC, AT(g_enc, t + 1)},
                               {READ_WINDOW, AT(read_window, t + 1)}};
    gradient(n, dh_dec, rows, U, from_h_dec + (t > 0 ? 0 : 2), 5 - (t > 0 ? 0 : 2) - (t < s->T ? 0 : 3));
    if (t > 0) {
      lstm_back(g_dec, AT(c_dec, t - 1), AT(c_dec, t), dh_dec, dc_dec, rows, U);
      gradient(n, dz, rows, Z, FLOWS({Z_TO_DEC, g_dec}));
      const long row = ((t - 1) * s->B + b0) * Z;
      to_panels(own_dmu, dmu + row, rows, Z), to_panels(own_dlog_sigma, dlog_sigma + row, rows, Z);
      EACH(rows, Z, i, k) {
        vec d = load(at(dz, i, k)), sigma = exp_(load(at(log_sigmas, i, k)));
        store(at(q, i, k), d + load(at(own_dmu, i, k)));
        store(at(log_sigmas, i, k), d * load(at(noise, i, k)) * sigma + load(at(own_dlog_sigma, i, k)));
      }
    }
    const flow from_h_enc[] = {{H_ENC_TO_Q, q}, {H_ENC_TO_ENC, AT(g_enc, t + 1)}};
    gradient(n, dh_enc, rows, U, from_h_enc + (t > 0 ? 0 : 1), 2 - (t > 0 ? 0 : 1) - (t < s->T ? 0 : 1));
    if (t == 0) break;
    lstm_back(g_enc, AT(c_enc, t - 1), AT(c_enc, t), dh_enc, dc_enc, rows, U);
    gradient(n, dr, rows, n->R, FLOWS({R_TO_ENC, g_enc}));
    if (s->attention)
      for (long i = 0; i < rows; i++) {
        float *mean = n->mean + (row_of(n, t) + b0 + i) * pixels, *numbers = at(AT(read_window, t), i, 0);
        const window b = filterbank(n, scratch, numbers, s->N_read);
        read_back(&b, x_images + i * pixels, mean, below(r, i), below(dr, i), numbers, dc + i * pixels);
      }
    else {
      EACH(rows, 4 * up(U, P), i, u) store(at(dx_gates, i, u), load(at(dx_gates, i, u)) + load(at(g_enc, i, u)));
      EACH(rows, D, i, j) {
        vec mean = load(at(x, i, j)) - load(at(r, i, j));
        store(at(image, i, j), load(at(image, i, j)) - load(at(dr, i, j)) * mean * (1 - mean));
      }
    }
  }
}

// The gradients of the bias and the weight of up to GROUP panels of a layer's outputs, over all steps and images. The
// weight's are summed in the place of the packed weight.
static void weight_back(const net* n, long task, float** gradients) {
  long panel, row, rows;
  const int l = locate(n, task, &panel, &row, &rows);
  if (panel % GROUP) return;
  const mat outs[LAYERS] = {n->g_enc, n->x_gates, n->g_enc, n->g_enc, n->q, n->g_dec, n->g_dec, n->write,
                            n->read_window, n->write_window};
  const mat ins[LAYERS] = {n->r, n->x, n->h_dec, n->h_enc, n->h_enc, n->z, n->h_dec, n->h_dec, n->h_dec, n->h_dec};
  const int before[LAYERS] = {[H_DEC_TO_ENC] = 1, [H_ENC_TO_ENC] = 1, [H_DEC_TO_DEC] = 1, [READ_WINDOW] = 1};  // t - 1
  const long K = n->layers[l].K, end = least(panel + GROUP, panels(n->layers + l)), B = n->s.B;
  const long R = l == X_TO_ENC ? B : n->s.T * B, first = l == X_TO_ENC ? 0 : B;
  const mat out = below(outs[l], first), in = below(ins[l], before[l] ? first - B : first);
  for (long r = 0; r < R; r += BLOCK)
    for (long k = 0; k < K; k += NV * VL)
      for (long p = panel; p < end; p++)
        for (long i = 0; i < P;) {
          term terms[] = {{below(right(out, p * P), r), below(in, r), least(BLOCK, R - r)}};
          terms[0].a.p += i;
          float* sums = at(n->w[l], p * P + i, k);
          i += corner(P - i, K - k, 1, terms, 1, k, r ? sums : 0, P, sums);
        }
  for (long p = panel; p < end; p++, task++) {
    locate(n, task, &panel, &row, &rows);
    from_panels(gradients[2 * l] + row * K, below(n->w[l], p * P), rows, K);
    vec sums[P / VL] = {{0}};
    for (long i = 0; i < R; i++)
      for (int j = 0; j < P / VL; j++) sums[j] += load(at(out, i, p * P + j * VL));
    if (gradients[2 * l + 1]) memcpy(gradients[2 * l + 1] + row, sums, 4 * rows);
  }
}

// ---- what Python calls

// Subnormal numbers become 0: far from its centre a filter has many, and each costs as much as a hundred others.
static unsigned flush_subnormals(void) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // FTZ and DAZ
  return before;
}

long draw_floats(const sizes* s) { return lay_out(s, 0).used; }  // how many floats of zeroed memory the next two need

// params: weight and bias of each layer in the order of their numbers, and the initial states; 0 where there is none
void draw_forward(const sizes* s, const float** params, const float* x, const float* eps, float* memory, float* canvas,
                  float* mu, float* log_sigma) {
  const net n = lay_out(s, memory);
#pragma omp parallel num_threads(s->threads)
  {
    const unsigned before = flush_subnormals();
#pragma omp for schedule(dynamic)
    for (long task = 0; task < num_tasks(&n); task++) pack(&n, task, params);
#pragma omp for schedule(dynamic)
    for (long b0 = 0; b0 < s->B; b0 += s->chunk)
      forward_rows(&n, b0, least(s->chunk, s->B - b0), params, x, eps, canvas, mu, log_sigma,
                   n.scratch + omp_get_thread_num() * n.num_scratch);
    _mm_setcsr(before);
  }
}

// Once after draw_forward with `keep`, in the same memory; gradients are in the order of params.
void draw_backward(const sizes* s, float* memory, const float* dcanvas, const float* dmu, const float* dlog_sigma,
                   float** gradients) {
  const net n = lay_out(s, memory);
#pragma omp parallel num_threads(s->threads)
  {
    const unsigned before = flush_subnormals();
#pragma omp for schedule(dynamic)
    for (long b0 = 0; b0 < s->B; b0 += s->chunk)
      backward_rows(&n, b0, least(s->chunk, s->B - b0), dcanvas, dmu, dlog_sigma,
                    n.scratch + omp_get_thread_num() * n.num_scratch);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < num_tasks(&n); task++) weight_back(&n, task, gradients);
    _mm_setcsr(before);
  }
  for (int k = 0; k < STATES; k++)
    for (long u = 0; u < s->U; u++) {
      float sum = 0;
      for (long i = 0; i < s->B; i++) sum += *at(n.d[k], i, u);
      gradients[2 * LAYERS + k][u] = sum;
    }
}
