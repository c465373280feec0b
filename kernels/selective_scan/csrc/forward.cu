// Forward selective scan. A thread owns CH neighbouring channels and all NS >= Ns states of each in registers and walks a
// segment of a route step by step. The block stages B, C and the steps' addresses, 16 steps at a time; nothing crosses
// lanes. Defines: IO (0 float, 1 bfloat16, 2 half), NS (1, 2, 4, 8, 16), CH (1, 2), THREADS, SOFTPLUS, GATE (0, 1).
#include "common.cuh"

constexpr int STEPS = 16, AHEAD = CH == 1 ? 8 : 4;

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

#if CH == 1
typedef io_t raw_t;
__device__ __forceinline__ void widen(raw_t v, float (&f)[CH]) { f[0] = to_float(v); }
__device__ __forceinline__ void store(io_t *p, const float (&f)[CH]) { *p = from_float<io_t>(f[0]); }
#else
typedef io_pair raw_t;
__device__ __forceinline__ void widen(raw_t v, float (&f)[CH]) {
  const float2 w = unpack(v);
  f[0] = w.x, f[1] = w.y;
}
__device__ __forceinline__ void store(io_t *p, const float (&f)[CH]) { *(io_pair *)p = pack(make_float2(f[0], f[1])); }
#endif

// STATE: only the segment's end state from zero and its total step size. ADJOINT: the same of the reverse recurrence
// g <- exp(dt A) (g + C dy), which reads x as dout and Bm as C.
template <bool STATE, bool ADJOINT> struct Walker {
  const Scan &p;
  const ForwardOut &o;
  const Where w;
  const int tid, e;
  const bool live;
  int first, stop, len, steps;
  long long bk, row, x_row;
  const io_t *px, *pd, *pz;
  float a[CH][NS], h[CH][NS], skip[CH], bias[CH], sum[CH];
  raw_t nx[AHEAD], nd[AHEAD], nz[ADJOINT ? AHEAD : 1];

  struct Shared {
    float B[2][STEPS][NS], C[2][STEPS][NS];
    long long at[4][STEPS];  // position x E
    int pos[4][STEPS];
  };
  Shared &sm;

  __device__ __forceinline__ Walker(const Scan &p, const ForwardOut &o, Shared &sm)
      : p(p), o(o), w(p), tid(threadIdx.x), e((w.tile * THREADS + tid) * CH), live(e < p.E), sm(sm) {
    len = p.lengths[w.k], first = w.segment * p.segment, stop = min(first + p.segment, len);
    steps = max(stop - first, 0);
    bk = (long long)w.b * p.K + w.k, row = row_of(p, w), x_row = x_row_of(p, w);
    const int at = live ? e : 0;  // lanes beyond the channels read the first ones and write nothing
    px = p.x + x_row * p.E + at, pd = p.delta + row * p.E + at, pz = GATE ? p.z + x_row * p.E + at : nullptr;
    const long long slot = bk * p.segments + w.segment;
#pragma unroll
    for (int c = 0; c < CH; c++) {
      const long long ke = (long long)w.k * p.E + at + c;
      skip[c] = p.D && p.n0 == 0 ? p.D[ke] : 0.f;
      bias[c] = p.bias ? p.bias[ke] : 0.f;
      sum[c] = 0.f;
#pragma unroll
      for (int n = 0; n < NS; n++) {
        a[c][n] = load_A(p, w.k, n, e + c);
        h[c][n] = !STATE && o.entry && live && n < p.Ns ? o.entry[state_at(p, slot, n, e + c)] : 0.f;
      }
    }
  }
  __device__ __forceinline__ void load_positions(int r) {
    if (tid < STEPS) {
      const int s = r * STEPS + tid;
      const int pos = s < steps ? p.route[(long long)w.k * p.M + (ADJOINT ? stop - 1 - s : first + s)] : 0;
      sm.pos[r & 3][tid] = pos;
      sm.at[r & 3][tid] = (long long)pos * p.E;
    }
  }
  static constexpr int PER = (STEPS * NS + THREADS - 1) / THREADS;
  __device__ __forceinline__ void fetch_bc(int r, float (&rB)[PER], float (&rC)[PER]) {
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int q = i * THREADS + tid, t = q / NS, n = q % NS;
      rB[i] = rC[i] = 0.f;
      if (q < STEPS * NS && n < p.Ns) {
        const long long at = (row + sm.pos[r & 3][t]) * p.N + p.n0 + n;
        rB[i] = to_float(p.Bm[at]);
        if (!STATE) rC[i] = to_float(p.Cm[at]);
      }
    }
  }
  __device__ __forceinline__ void store_bc(int r, const float (&rB)[PER], const float (&rC)[PER]) {
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int q = i * THREADS + tid;
      if (q < STEPS * NS) {
        sm.B[r & 1][q / NS][q % NS] = rB[i];
        if (!STATE) sm.C[r & 1][q / NS][q % NS] = rC[i];
      }
    }
  }
  __device__ __forceinline__ void fetch_x(int s) {  // steps s .. s + AHEAD of the segment
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      const long long at = sm.at[(s / STEPS) & 3][(s + j) % STEPS];
      nx[j] = *(const raw_t *)(px + at), nd[j] = *(const raw_t *)(pd + at);
      if (ADJOINT && GATE) nz[j] = *(const raw_t *)(pz + at);
    }
  }
  __device__ __forceinline__ void finish(int r, int t, float (&y)[CH]) {
    const long long at = sm.at[r & 3][t] + e;
    if (o.partial) {
      float *to = o.partial + row * p.E + at;
#pragma unroll
      for (int c = 0; c < CH; c++) y[c] += p.n0 ? to[c] : 0.f;
      if (CH == 1) *to = y[0];
      else *(float2 *)to = make_float2(y[0], y[CH - 1]);
      return;
    }
    const long long to = (o.out_per_route ? row : (long long)w.b * p.L) * p.E + at;
    if (o.ungated) store(o.ungated + to, y);
    if (GATE) {
      float g[CH];
      widen(*(const raw_t *)(p.z + to), g);
#pragma unroll
      for (int c = 0; c < CH; c++) y[c] *= silu(g[c]);
    }
    store(o.out + to, y);
  }
  // AHEAD steps from t0 of round r; GUARD where the segment may end among them.
  template <bool GUARD> __device__ __forceinline__ void advance(int r, int t0) {
    float x[AHEAD][CH], d[AHEAD][CH];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      widen(nx[j], x[j]), widen(nd[j], d[j]);
      if (ADJOINT) {
        float g[CH] = {};
        if (GATE) widen(nz[j], g);
#pragma unroll
        for (int c = 0; c < CH; c++) x[j][c] *= GATE ? p.scale * silu(g[c]) : p.scale;
      }
    }
    fetch_x(r * STEPS + t0 + AHEAD);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      const int t = t0 + j;
      const bool ok = !GUARD || r * STEPS + t < steps;
      float dt[CH], u[CH], y0[CH], y1[CH];
#pragma unroll
      for (int c = 0; c < CH; c++) {
        const float dt_c = step_size(d[j][c] + bias[c]);
        dt[c] = ok ? dt_c : 0.f;
        if (STATE) sum[c] += dt[c];
        u[c] = ADJOINT ? (ok ? x[j][c] : 0.f) : dt[c] * x[j][c];
        y0[c] = skip[c] * x[j][c], y1[c] = 0.f;
      }
#pragma unroll
      for (int n = 0; n < NS; n++) {
        const float b = sm.B[r & 1][t][n], cc = STATE ? 0.f : sm.C[r & 1][t][n];
#pragma unroll
        for (int c = 0; c < CH; c++) {
          const float decay = ex2(dt[c] * a[c][n]);
          h[c][n] = ADJOINT ? decay * fmaf(u[c], b, h[c][n]) : fmaf(decay, h[c][n], u[c] * b);
          if (!STATE) (n & 1 ? y1[c] : y0[c]) = fmaf(h[c][n], cc, n & 1 ? y1[c] : y0[c]);
        }
      }
      if (!STATE && ok && live) {
        float y[CH];
#pragma unroll
        for (int c = 0; c < CH; c++) y[c] = y0[c] + y1[c];
        finish(r, t, y);
      }
    }
  }
  __device__ __forceinline__ void put(float *to, long long slot) {
#pragma unroll
    for (int n = 0; n < NS; n++)
#pragma unroll
      for (int c = 0; c < CH; c++)
        if (n < p.Ns) to[state_at(p, slot, n, e + c)] = h[c][n];
  }
  __device__ __forceinline__ void run() {
    const int rounds = (steps + STEPS - 1) / STEPS;
    float rB[PER], rC[PER];
    load_positions(0), load_positions(1);
    __syncthreads();
    fetch_bc(0, rB, rC), store_bc(0, rB, rC), fetch_x(0);
    __syncthreads();
#pragma unroll 1
    for (int r = 0; r < rounds; r++) {
      if (r + 1 < rounds) fetch_bc(r + 1, rB, rC);
      load_positions(r + 2);
      const int step = first + r * STEPS;
      if (!STATE && o.saved && live && step % CHUNK == 0) put(o.saved, (long long)(step / CHUNK) * p.batch * p.K + bk);
      if ((r + 1) * STEPS <= steps) {
#pragma unroll 1
        for (int t0 = 0; t0 < STEPS; t0 += AHEAD) advance<false>(r, t0);
      } else {
#pragma unroll 1
        for (int t0 = 0; t0 < STEPS; t0 += AHEAD) advance<true>(r, t0);
      }
      if (r + 1 < rounds) store_bc(r + 1, rB, rC);
      __syncthreads();
    }
    if (!live) return;
    const long long slot = bk * p.segments + w.segment;
    if (STATE) {
      put(o.end, slot);
#pragma unroll
      for (int c = 0; c < CH; c++) o.sum_dt[slot * p.E + e + c] = sum[c];
    } else if (steps > 0 && stop == len) {
      put(o.last, bk);
      if (o.saved) put(o.saved, (p.L + CHUNK - 1) / CHUNK * p.batch * p.K + bk);
    }
  }
};

#define SCAN_KERNEL(name, state, adjoint)                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS) name(const Scan p, const ForwardOut o) {      \
    __shared__ __align__(16) typename Walker<state, adjoint>::Shared sm;                              \
    Walker<state, adjoint>(p, o, sm).run();                                                           \
  }
SCAN_KERNEL(scan_forward, false, false)
SCAN_KERNEL(scan_state, true, false)
SCAN_KERNEL(scan_adjoint, true, true)
