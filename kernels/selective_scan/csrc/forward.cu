// Forward selective scan. One thread owns one channel and all NS >= N states of it in registers and walks a segment of a
// route step by step; B and C of 16 steps are staged once for the block's channels. Nothing crosses lanes.
// Defines: IO (0 float, 1 bfloat16, 2 half), NS (1, 2, 4, 8, 16), THREADS (channels per block).
#include "common.cuh"

constexpr int STEPS = 16, AHEAD = 8;

struct ForwardOut {
  io_t *out;            // (B, [K,] L, E) finished, where nothing is left to merge; else null
  float *partial;       // (B, K, L, E) per route, else null
  io_t *ungated;        // like out, before the gate; null where not wanted
  const float *entry;   // (B, K, segments, N, E) state at each segment's first step; null: zero
  float *saved;         // (chunks + 1, B, K, N, E), null where not wanted
  float *last;          // (B, K, N, E)
  float *end, *sum_dt;  // state pass only: (B, K, segments, N, E) from zero, (B, K, segments, E)
  int out_per_route;
};

// STATE: only the segment's end state from zero and its total step size. ADJOINT: the same of the reverse recurrence
// g <- exp(dt A) (g + C dy), which reads x as dy and Bm as C.
template <bool STATE, bool ADJOINT> __device__ __forceinline__ void walk(const Scan &p, const ForwardOut &o) {
  const Where w(p);
  const int tid = threadIdx.x, e = w.tile * THREADS + tid;
  const bool live = e < p.E;
  __shared__ __align__(16) float sB[2][STEPS][NS], sC[2][STEPS][NS];
  __shared__ int sPos[4][STEPS];
  const int first = w.segment * p.segment, len = p.lengths[w.k], stop = min(first + p.segment, len);
  const int steps = max(stop - first, 0), rounds = (steps + STEPS - 1) / STEPS;
  const long long bk = (long long)w.b * p.K + w.k, slot = bk * p.segments + w.segment;
  const long long row = row_of(p, w), x_row = x_row_of(p, w);

  float a[NS], h[NS], sum = 0.f;
#pragma unroll
  for (int n = 0; n < NS; n++) {
    a[n] = load_A(p, w.k, n, e);
    h[n] = 0.f;
    if (!STATE && o.entry && live && n < p.Ns) h[n] = o.entry[state_at(p, slot, n, e)];
  }
  const float skip = live && p.D && p.n0 == 0 ? p.D[(long long)w.k * p.E + e] : 0.f;
  const float bias = live && p.bias ? p.bias[(long long)w.k * p.E + e] : 0.f;
  const int *route = p.route + (long long)w.k * p.M;

  auto load_positions = [&](int r) {
    if (tid < STEPS) {
      const int s = r * STEPS + tid;
      sPos[r & 3][tid] = s < steps ? route[ADJOINT ? stop - 1 - s : first + s] : -1;
    }
  };
  constexpr int PER = (STEPS * NS + THREADS - 1) / THREADS;
  float rB[PER], rC[PER];
  auto fetch_bc = [&](int r) {
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int q = i * THREADS + tid, t = q / NS, n = q % NS;
      rB[i] = rC[i] = 0.f;
      if (q < STEPS * NS && n < p.Ns) {
        const int pos = sPos[r & 3][t];
        if (pos >= 0) {
          rB[i] = to_float(p.Bm[(row + pos) * p.N + p.n0 + n]);
          if (!STATE) rC[i] = to_float(p.Cm[(row + pos) * p.N + p.n0 + n]);
        }
      }
    }
  };
  auto store_bc = [&](int r) {
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int q = i * THREADS + tid;
      if (q < STEPS * NS) {
        sB[r & 1][q / NS][q % NS] = rB[i];
        if (!STATE) sC[r & 1][q / NS][q % NS] = rC[i];
      }
    }
  };
  float nx[AHEAD], nd[AHEAD];
  auto fetch_x = [&](int s) {  // steps s .. s + AHEAD of the segment
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      const int pos = sPos[(s / STEPS) & 3][(s + j) % STEPS];
      const bool ok = live && pos >= 0 && s + j < steps;
      const long long at = (x_row + pos) * p.E + e;
      nx[j] = !ok ? 0.f : ADJOINT ? load_dy(p, at) : to_float(p.x[at]);
      nd[j] = ok ? to_float(p.delta[(row + pos) * p.E + e]) : 0.f;
    }
  };

  load_positions(0);
  load_positions(1);
  __syncthreads();
  fetch_bc(0);
  store_bc(0);
  fetch_x(0);
  __syncthreads();
#pragma unroll 1
  for (int r = 0; r < rounds; r++) {
    if (r + 1 < rounds) fetch_bc(r + 1);
    load_positions(r + 2);
    const int step = first + r * STEPS;
    if (!STATE && o.saved && live && step % CHUNK == 0) {
      const long long save = (long long)(step / CHUNK) * p.batch * p.K + bk;
#pragma unroll
      for (int n = 0; n < NS; n++)
        if (n < p.Ns) o.saved[state_at(p, save, n, e)] = h[n];
    }
#pragma unroll 1
    for (int t0 = 0; t0 < STEPS; t0 += AHEAD) {
      float x[AHEAD], d[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; j++) x[j] = nx[j], d[j] = nd[j];
      fetch_x(r * STEPS + t0 + AHEAD);
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        const int t = t0 + j;
        const bool ok = r * STEPS + t < steps;
        const float raw = d[j] + bias;
        const float dt = ok ? (p.softplus ? softplus(raw) : raw) : 0.f;
        if (STATE) sum += dt;
        const float u = ADJOINT ? x[j] : dt * x[j];
        float y0 = skip * x[j], y1 = 0.f;
#pragma unroll
        for (int n = 0; n < NS; n++) {
          const float b = sB[r & 1][t][n];
          const float decay = ex2(dt * a[n]);
          h[n] = ADJOINT ? decay * fmaf(u, b, h[n]) : fmaf(decay, h[n], u * b);
          if (!STATE) (n & 1 ? y1 : y0) = fmaf(h[n], sC[r & 1][t][n], n & 1 ? y1 : y0);
        }
        if (!STATE && ok && live) {
          const int pos = sPos[r & 3][t];
          float y = y0 + y1;
          if (o.partial) {
            float *at = o.partial + (row + pos) * p.E + e;
            *at = p.n0 ? *at + y : y;
          } else {
            const long long at = ((o.out_per_route ? row : (long long)w.b * p.L) + pos) * p.E + e;
            if (o.ungated) o.ungated[at] = from_float<io_t>(y);
            if (p.z) {
              const float g = to_float(p.z[at]);
              y *= g * sigmoid(g);
            }
            o.out[at] = from_float<io_t>(y);
          }
        }
      }
    }
    if (r + 1 < rounds) store_bc(r + 1);
    __syncthreads();
  }
  if (!live) return;
#pragma unroll
  for (int n = 0; n < NS; n++) {
    if (n >= p.Ns) continue;
    if (STATE) o.end[state_at(p, slot, n, e)] = h[n];
    else if (steps > 0 && stop == len) o.last[state_at(p, bk, n, e)] = h[n];
  }
  if (STATE) o.sum_dt[slot * p.E + e] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) scan_forward(const Scan p, const ForwardOut o) { walk<false, false>(p, o); }
extern "C" __global__ void __launch_bounds__(THREADS) scan_state(const Scan p, const ForwardOut o) { walk<true, false>(p, o); }
extern "C" __global__ void __launch_bounds__(THREADS) scan_adjoint(const Scan p, const ForwardOut o) { walk<true, true>(p, o); }
