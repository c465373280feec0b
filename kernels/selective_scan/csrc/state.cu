// What a segment of a route does to the state: its end state from zero and its total step size (scan_state), and the same
// of the reverse recurrence g <- exp(dt A) (g + C dy), at the segment's first step (scan_adjoint; x is dout there). Each is
// a sum over steps of exp(A S) times the step's input, S the steps between it and the segment's edge, taken from that edge:
// once exp(A S) is zero in float32 for all of a warp's channels, nothing further inside can add to those states.
// Defines: IO (0 float, 1 bfloat16, 2 half), NS (1, 2, 4, 8, 16), CH (1, 2), VEC, SOFTPLUS, GATE (0, 1).
#include "common.cuh"

constexpr int QUAD = NS < 4 ? NS : 4, QUADS = NS / QUAD;
constexpr float GONE = -126.f;  // below, ex2 gives zero

struct StateOut {
  float *end, *sum_dt;  // (B, K, segments, N, E), (B, K, segments, E) in units of ln 2
};

template <bool ADJOINT> __device__ __forceinline__ void summarise(const Scan &p, const StateOut &o, TileBC (&sm)[2]) {
  const int lane = threadIdx.x & 31, e = min((blockIdx.x % p.tiles * 32 + lane) * CH, p.E - CH);
  unsigned id = blockIdx.x / p.tiles;
  const int segment = id % p.segments;
  id /= p.segments;
  const int b = id % p.batch, k = id / p.batch;
  const Span span(p, k, segment);
  const int steps = span.stop - span.first;
  const int *route = p.route + (long long)k * p.M;
  const io_t *px = row_of(p.x, b, k) + e, *pd = row_of(p.delta, b, k) + e, *pz = GATE ? row_of(p.z, b, k) + e : nullptr;
  float a[CH][NS], end[CH][NS] = {}, slowest[QUADS][CH], bias[CH], S[CH] = {};
#pragma unroll
  for (int c = 0; c < CH; c++) {
    bias[c] = p.bias ? p.bias[(long long)k * p.E + e + c] * LOG2E : 0.f;
#pragma unroll
    for (int n = 0; n < NS; n++) {
      a[c][n] = load_A(p, k, n, e + c);
      const float known = n < p.Ns ? a[c][n] : -1e30f;
      slowest[n / QUAD][c] = n % QUAD ? fmaxf(slowest[n / QUAD][c], known) : known;
    }
  }
  auto step_of = [&](int i) { return ADJOINT ? span.first + i : span.stop - 1 - i; };
  auto position = [&](int i) { return i < steps ? route[step_of(i)] : 0; };
  FetchBC bc(p, b, k, lane);
  raw_t nx[TILE], nd[TILE], nz[TILE];
  auto fetch = [&](int i0) {
    const int mine = position(i0 + (lane & 7));
    bc.load(p, lane, __shfl_sync(~0u, mine, lane >> 2));
#pragma unroll
    for (int j = 0; j < TILE; j++) {
      const int pos = __shfl_sync(~0u, mine, j);
      nx[j] = *(const raw_t *)at_row(px, pos, p.x.row), nd[j] = *(const raw_t *)at_row(pd, pos, p.delta.row);
      if (ADJOINT && GATE) nz[j] = *(const raw_t *)at_row(pz, pos, p.z.row);
    }
  };
  if (steps > 0) fetch(0);
#pragma unroll 1
  for (int i0 = 0; i0 < steps; i0 += TILE) {
    float s[TILE][CH], u[TILE][CH];
#pragma unroll
    for (int j = 0; j < TILE; j++) {
      float x[CH], d[CH], g[CH] = {};
      widen(nx[j], x), widen(nd[j], d);
      if (ADJOINT && GATE) widen(nz[j], g);
      const bool ok = i0 + j < steps;
#pragma unroll
      for (int c = 0; c < CH; c++) {
        const float size = ok ? step_size(d[c], bias[c]) : 0.f;
        u[j][c] = ADJOINT ? x[c] * p.scale * (GATE ? silu(g[c]) : 1.f) : size * x[c];
        if (!ok) u[j][c] = 0.f;
        if (ADJOINT) S[c] += size;
        s[j][c] = S[c];
        if (!ADJOINT) S[c] += size;
      }
    }
    TileBC &tile = sm[(i0 / TILE) & 1];
    __syncwarp();
    bc.put(tile, lane);
    __syncwarp();
    if (i0 + TILE < steps) fetch(i0 + TILE);
    bool any = false;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
      bool active = !SOFTPLUS;  // without softplus steps may be negative
#pragma unroll
      for (int c = 0; c < CH; c++) active = active || s[0][c] * slowest[q][c] > GONE;
      if (!__any_sync(~0u, active)) continue;
      any = true;
#pragma unroll
      for (int j = 0; j < TILE; j++) {
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
          const int n = q * QUAD + i;
          const float v = tile.v[j][ADJOINT][n];
#pragma unroll
          for (int c = 0; c < CH; c++) end[c][n] = fmaf(ex2(s[j][c] * a[c][n]), u[j][c] * v, end[c][n]);
        }
      }
    }
    if (!any) break;
  }
  const long long slot = ((long long)b * p.K + k) * p.segments + segment;
  store(o.sum_dt + slot * p.E + e, S);
  float *to = o.end + state_at(p, slot, 0, e);
#pragma unroll
  for (int n = 0; n < NS; n++, to += p.E) {
    float v[CH];
#pragma unroll
    for (int c = 0; c < CH; c++) v[c] = end[c][n];
    if (n < p.Ns) store(to, v);
  }
}

#define STATE_KERNEL(name, adjoint)                                                                                     \
  extern "C" __global__ void __launch_bounds__(32, 12) name(const __grid_constant__ Scan p,                             \
                                                            const __grid_constant__ StateOut o) {                       \
    __shared__ __align__(16) TileBC sm[2];                                                                              \
    summarise<adjoint>(p, o, sm);                                                                                       \
  }
STATE_KERNEL(scan_state, false)
STATE_KERNEL(scan_adjoint, true)
