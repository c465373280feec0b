// Forward selective scan. A thread owns CH neighbouring channels and all NS >= Ns states of each in registers and walks a
// segment of a route step by step; nothing crosses lanes. A warp is a walker of its own: it stages its B and C.
// OUT tells how routes meet. 0: every route alone, into its own floats. 1: every route alone, finished. 2 and 3: a block's
// two walkers take a route and its reverse from both ends; who reaches a position second adds what the first left there,
// so that no map per route is stored. 2 finishes the sum (D, mean, gate), 3 leaves it to the merge with other pairs.
// Defines: IO (0 float, 1 bfloat16, 2 half), NS (1, 2, 4, 8, 16), CH (1, 2), VEC, OUT, SOFTPLUS, GATE (0, 1).
#include "common.cuh"

constexpr int WALKERS = OUT >= 2 ? 2 : 1, GROUP = 4, GROUPS = TILE / GROUP;
constexpr bool FINISHES = OUT == 1 || OUT == 2;
struct alignas(4 * GROUP) Positions {
  int at[GROUP];
};

struct ForwardOut {
  io_t *out;           // (B, [K,] L, E), where OUT finishes
  float *partial;      // (B, G, L, E): per route or pair; with OUT 2, what the first visitors leave
  io_t *ungated;       // like out, before the gate; null where not wanted
  const float *entry;  // (B, K, segments, N, E) state at each segment's first step; null: zero
  float *saved;        // (chunks + 1, B, K, N, E), null where not wanted
  float *last;         // (B, K, E, N)
  const int *pairs;    // OUT >= 2: routes 2 g and 2 g + 1 of the list make pair g
  int out_per_route;
};

enum Visit { ALONE, FIRST, SECOND };

struct Walker {
  const Scan &p;
  const ForwardOut &o;
  TileBC (&sm)[2];
  const int lane, own, e, floats, values;  // bytes of a row of maps
  const bool live;
  int b, k, group, groups, segment;
  const io_t *px, *pd, *pz;
  const int *route;
  io_t *out, *ungated;
  float *partial;
  float a[CH][NS], h[CH][NS], skip[CH], bias[CH];
  raw_t nx[GROUP], nd[GROUP], nz[GROUP];
  float np[GROUP][CH];
  Positions at, next;  // of this group and the next

  __device__ __forceinline__ Walker(const Scan &p, const ForwardOut &o, TileBC (&sm)[2])
      : p(p), o(o), sm(sm), lane(threadIdx.x & 31), own((blockIdx.x % p.tiles * 32 + lane) * CH), e(min(own, p.E - CH)),
        floats(p.E * sizeof(float)), values(p.E * sizeof(io_t)), live(own < p.E) {
    unsigned id = blockIdx.x / p.tiles;
    segment = id % p.segments, id /= p.segments;
    b = id % p.batch, group = id / p.batch;
    groups = p.K / WALKERS;
    const int walker = threadIdx.x >> 5;
    k = WALKERS == 2 ? o.pairs[2 * group + walker] : group;
    if (WALKERS == 2 && walker) segment = p.segments - 1 - segment;
    // Lanes beyond the channels repeat the last ones, bit for bit, which costs less than to keep them from writing.
    px = row_of(p.x, b, k) + e, pd = row_of(p.delta, b, k) + e;
    pz = GATE && FINISHES ? row_of(p.z, b, k) + e : nullptr;
    route = p.route + (long long)k * p.M;
    partial = o.partial ? o.partial + ((long long)b * groups + group) * p.L * p.E + e : nullptr;
    const long long to = (o.out_per_route ? (long long)b * p.K + k : b) * p.L * p.E + e;
    out = o.out ? o.out + to : nullptr, ungated = o.ungated ? o.ungated + to : nullptr;
    const long long slot = ((long long)b * p.K + k) * p.segments + segment;
#pragma unroll
    for (int c = 0; c < CH; c++) {
      const long long ke = (long long)k * p.E + e + c;
      skip[c] = p.D && p.n0 == 0 ? p.D[ke] : 0.f;
      bias[c] = p.bias ? p.bias[ke] * LOG2E : 0.f;
#pragma unroll
      for (int n = 0; n < NS; n++) {
        a[c][n] = load_A(p, k, n, e + c);
        h[c][n] = o.entry && n < p.Ns ? o.entry[state_at(p, slot, n, e + c)] : 0.f;
      }
    }
  }
  __device__ __forceinline__ void put(float *to, long long slot) {
    to += state_at(p, slot, 0, e);
#pragma unroll
    for (int n = 0; n < NS; n++, to += p.E) {
      float v[CH];
#pragma unroll
      for (int c = 0; c < CH; c++) v[c] = h[c][n];
      if (VEC || n < p.Ns) store(to, v);
    }
  }
  __device__ __forceinline__ void put_last(long long row) {
    float *to = o.last + (row * p.E + e) * p.N + p.n0;
#pragma unroll
    for (int c = 0; c < CH; c++)
#pragma unroll
      for (int n = 0; n < NS; n++)
        if (n < p.Ns) to[c * p.N + n] = h[c][n];
  }
  // What a group of steps at these positions will need, on its way.
  __device__ __forceinline__ void fetch(Positions pos) {
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      nx[j] = *(const raw_t *)at_row(px, pos.at[j], p.x.row), nd[j] = *(const raw_t *)at_row(pd, pos.at[j], p.delta.row);
    }
  }
  // What the end of a group of steps will need.
  template <Visit V> __device__ __forceinline__ void fetch_merge(Positions pos) {
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      if (V == SECOND) load(at_row(partial, pos.at[j], floats), np[j]);
      if (GATE && V != FIRST && FINISHES) nz[j] = *(const raw_t *)at_row(pz, pos.at[j], p.z.row);
    }
  }
  template <Visit V> __device__ __forceinline__ void finish(int pos, float (&y)[CH], const float (&add)[CH], raw_t z) {
    if (V == SECOND) {
#pragma unroll
      for (int c = 0; c < CH; c++) y[c] += add[c];
    }
    if constexpr (V == FIRST || !FINISHES) {
      float *to = at_row(partial, pos, floats);
      if (OUT == 0 && p.n0) {
        float sum[CH];
        load(to, sum);
#pragma unroll
        for (int c = 0; c < CH; c++) y[c] += sum[c];
      }
      if (OUT || live) store(to, y);  // what is added up must not be added by the repeating lanes as well
    } else {
#pragma unroll
      for (int c = 0; c < CH; c++) y[c] *= p.scale;
      if (GATE) {
        if (o.ungated) store(at_row(ungated, pos, values), y);
        float g[CH];
        widen(z, g);
#pragma unroll
        for (int c = 0; c < CH; c++) y[c] *= silu(g[c]);
      }
      store(at_row(out, pos, values), y);
    }
  }
  // The steps of group g; GUARD where some lie outside [lo, hi).
  template <Visit V, bool GUARD> __device__ __forceinline__ void advance(int g, int lo, int hi) {
    float x[GROUP][CH], s[GROUP][CH];
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      float d[CH];
      widen(nx[j], x[j]), widen(nd[j], d);
#pragma unroll
      for (int c = 0; c < CH; c++) s[j][c] = step_size(d[c], bias[c]);
    }
    const Positions pos = at;
    fetch_merge<V>(at);
    fetch(next);
    at = next;
    next = *(const Positions *)(route + (g + 2) * GROUP);
    const TileBC &tile = sm[g / GROUPS & 1];
    const int t0 = g % GROUPS * GROUP;
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      if (GUARD && (g * GROUP + j < lo || g * GROUP + j >= hi)) continue;
      float(&y)[CH] = x[j], u[CH];
#pragma unroll
      for (int c = 0; c < CH; c++) u[c] = s[j][c] * y[c], y[c] *= skip[c];
#pragma unroll
      for (int n = 0; n < NS; n++) {
        const float B = tile.v[t0 + j][0][n], C = tile.v[t0 + j][1][n];
#pragma unroll
        for (int c = 0; c < CH; c++) {
          h[c][n] = fmaf(ex2(s[j][c] * a[c][n]), h[c][n], u[c] * B);
          y[c] = fmaf(h[c][n], C, y[c]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      if (GUARD && (g * GROUP + j < lo || g * GROUP + j >= hi)) continue;
      finish<V>(pos.at[j], x[j], np[j], nz[j]);
    }
  }
  // Steps [lo, hi) of the route.
  template <Visit V> __device__ __forceinline__ void walk(int lo, int hi) {
    if (lo >= hi) return;
    const int g0 = lo / GROUP, g1 = (hi + GROUP - 1) / GROUP;
    at = *(const Positions *)(route + g0 * GROUP), next = *(const Positions *)(route + (g0 + 1) * GROUP);
    const int *tokens = route + lane / 4;
    FetchBC bc(p, b, k, lane);
    bc.load(p, lane, tokens[g0 / GROUPS * TILE]);
    int pos = tokens[(g0 / GROUPS + 1) * TILE];
    fetch(at);
#pragma unroll 1
    for (int g = g0; g < g1; g++) {
      if (g == g0 || g % GROUPS == 0) {
        bc.put(sm[g / GROUPS & 1], lane);
        __syncwarp();
        bc.load(p, lane, pos);
        pos = tokens[(g / GROUPS + 2) * TILE];
        if (o.saved && g * GROUP % CHUNK == 0) {
          if (g * GROUP >= lo) put(o.saved, ((long long)(g * GROUP / CHUNK) * p.batch + b) * p.K + k);
        }
      }
      if (g * GROUP >= lo && g * GROUP + GROUP <= hi) advance<V, false>(g, lo, hi);
      else advance<V, true>(g, lo, hi);
    }
    __syncwarp();
  }
};

extern "C" __global__ void __launch_bounds__(32 * WALKERS, 12 / WALKERS) scan_forward(const __grid_constant__ Scan p,
                                                                                    const __grid_constant__ ForwardOut o) {
  __shared__ __align__(16) TileBC sm[WALKERS][2];
  Walker w(p, o, sm[threadIdx.x >> 5]);
  const Span span(p, w.k, w.segment);
  if constexpr (WALKERS == 1) {
    w.walk<ALONE>(span.first, span.stop);
  } else {
    // The first walker takes the front of its segment first, its partner the same positions' complement.
    const int steps = span.stop - span.first, front = threadIdx.x < 32 ? (steps + 1) / 2 : steps / 2;
    w.walk<FIRST>(span.first, span.first + front);
    __syncthreads();
    w.walk<SECOND>(span.first + front, span.stop);
  }
  if (span.stop == span.len && (span.first < span.stop || span.len == 0)) {
    const long long bk = (long long)w.b * p.K + w.k;
    w.put_last(bk);
    if (o.saved) w.put(o.saved, (p.L + CHUNK - 1) / CHUNK * p.batch * p.K + bk);
  }
}
