// Forward selective scan. A thread owns CH neighbouring channels and all NS >= Ns states of each in registers and walks a
// segment of a route step by step; nothing crosses lanes. A warp is a walker of its own: it stages its B and C.
// OUT tells how routes meet. 0: every route alone, into its own floats. 1: every route alone, finished. 2 and 3: a block's
// two walkers take a route and its reverse from both ends; who reaches a position second adds what the first left there,
// so that no map per route is stored. 2 finishes the sum (D, mean, gate), 3 leaves it to the merge with other pairs.
// Defines: IO (0 float, 1 bfloat16, 2 half), NS (1, 2, 4, 8, 16), CH (1, 2), VEC, OUT, SOFTPLUS, GATE (0, 1), MAIL (1: rows
// of x, delta and z are multiples of 16 bytes, so that they can be copied in such pieces).
#include "common.cuh"

constexpr int WALKERS = OUT >= 2 ? 2 : 1, SPAN = 32 * CH;
constexpr bool FINISHES = OUT == 1 || OUT == 2;

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

// What TILE steps need from memory for the warp's channels, one tile ahead of its use.
struct alignas(16) Mail {
  io_t x[TILE][SPAN], delta[TILE][SPAN];
  io_t z[GATE ? TILE : 1][SPAN];
  float partial[OUT >= 2 ? TILE : 1][SPAN];
  int pos[TILE];
};
struct WarpShared {
  TileBC bc[2];
  Mail mail[2];
};
__device__ __forceinline__ void send16(void *to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
               "r"(bytes) : "memory");
}

struct Walker {
  const Scan &p;
  const ForwardOut &o;
  WarpShared &sm;
  const int lane, base, own, e, floats, values;  // bytes of a row of maps
  const bool live;
  int b, k, group, groups, segment;
  const int *route;
  io_t *out, *ungated;
  float *partial;
  float a[CH][NS], h[CH][NS], skip[CH], bias[CH];

  __device__ __forceinline__ Walker(const Scan &p, const ForwardOut &o, WarpShared &sm)
      : p(p), o(o), sm(sm), lane(threadIdx.x & 31), base(blockIdx.x % p.tiles * SPAN), own(base + lane * CH),
        e(min(own, p.E - CH)), floats(p.E * sizeof(float)), values(p.E * sizeof(io_t)), live(own < p.E) {
    unsigned id = blockIdx.x / p.tiles;
    segment = id % p.segments, id /= p.segments;
    b = id % p.batch, group = id / p.batch;
    groups = p.K / WALKERS;
    const int walker = threadIdx.x >> 5;
    k = WALKERS == 2 ? o.pairs[2 * group + walker] : group;
    if (WALKERS == 2 && walker) segment = p.segments - 1 - segment;
    // Lanes beyond the channels repeat the last ones, bit for bit, which costs less than to keep them from writing.
    route = p.route + (long long)k * p.M;
    partial = o.partial ? o.partial + ((long long)b * groups + group) * p.L * p.E : nullptr;
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
  // Rows of one stream at the tile's positions (lane / 4 holds one each), into shared memory.
  template <typename T> __device__ __forceinline__ void send_rows(T (*to)[SPAN], const T *from, int row, int mine) const {
    constexpr int PER = 16 / sizeof(T), PIECES = SPAN / PER;
#pragma unroll
    for (int i = 0; i < TILE * PIECES / 32; i++) {
      const int q = i * 32 + lane, t = q / PIECES, c = q % PIECES * PER;
      const int pos = __shfl_sync(~0u, mine, t * 4);
      const bool in = base + c < p.E;
      const T *at = at_row(from, pos, row) + (in ? c : 0);
      if (MAIL) send16(&to[t][c], at, in ? 16 : 0);
      else
        for (int j = 0; j < PER; j++) to[t][c + j] = base + c + j < p.E ? at[j] : from_float<T>(0.f);
    }
  }
  template <Visit V> __device__ __forceinline__ void send(Mail &to, int mine) const {
    send_rows(to.x, row_of(p.x, b, k) + base, p.x.row, mine);
    send_rows(to.delta, row_of(p.delta, b, k) + base, p.delta.row, mine);
    if (GATE && FINISHES && V != FIRST) send_rows(to.z, row_of(p.z, b, k) + base, p.z.row, mine);
    if (V == SECOND) send_rows(to.partial, (const float *)partial + base, floats, mine);
    if (lane % 4 == 0) to.pos[lane / 4] = mine;
  }
  template <Visit V> __device__ __forceinline__ void finish(const Mail &mail, int t, float (&y)[CH]) {
    const int pos = mail.pos[t];
    if constexpr (V == SECOND) {
      float left[CH];
      load(&mail.partial[t][e - base], left);
#pragma unroll
      for (int c = 0; c < CH; c++) y[c] += left[c];
    }
    if constexpr (V == FIRST || !FINISHES) {
      float *to = at_row(partial + e, pos, floats);
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
        widen(*(const raw_t *)&mail.z[t][e - base], g);
#pragma unroll
        for (int c = 0; c < CH; c++) y[c] *= silu(g[c]);
      }
      store(at_row(out, pos, values), y);
    }
  }
  __device__ __forceinline__ void input(const Mail &mail, int t, float (&x)[CH], float (&s)[CH]) const {
    float d[CH];
    widen(*(const raw_t *)&mail.x[t][e - base], x), widen(*(const raw_t *)&mail.delta[t][e - base], d);
#pragma unroll
    for (int c = 0; c < CH; c++) s[c] = step_size(d[c], bias[c]);
  }
  // Steps [lo, hi) of the route.
  template <Visit V> __device__ __forceinline__ void walk(int lo, int hi) {
    if (lo >= hi) return;
    const int first = lo / TILE, last = (hi - 1) / TILE;
    const int *tokens = route + lane / 4;
    FetchBC bc(p, b, k, lane);
    int mine = tokens[first * TILE];
    send<V>(sm.mail[first & 1], mine);
    bc.load(p, lane, mine);
    mine = tokens[(first + 1) * TILE];
#pragma unroll 1
    for (int q = first; q <= last; q++) {
      const TileBC &tile = sm.bc[q & 1];
      const Mail &mail = sm.mail[q & 1];
      bc.put(sm.bc[q & 1], lane);
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncwarp();
      if (q < last) {
        send<V>(sm.mail[(q + 1) & 1], mine);
        bc.load(p, lane, mine);
        mine = tokens[(q + 2) * TILE];
      }
      if (o.saved && q * TILE % CHUNK == 0 && q * TILE >= lo)
        put(o.saved, ((long long)(q * TILE / CHUNK) * p.batch + b) * p.K + k);
      const int t0 = max(lo - q * TILE, 0), t1 = min(hi - q * TILE, TILE);
      float nx[CH], ns[CH];
      input(mail, t0, nx, ns);
#pragma unroll 1  // unrolled twice, it is no faster
      for (int t = t0; t < t1; t++) {
        float y[CH], u[CH], s[CH];
#pragma unroll
        for (int c = 0; c < CH; c++) s[c] = ns[c], u[c] = s[c] * nx[c], y[c] = skip[c] * nx[c];
        input(mail, min(t + 1, TILE - 1), nx, ns);  // the next step's size is found beside this step's states
#pragma unroll
        for (int n = 0; n < NS; n++) {
          const float B = tile.v[t][0][n], C = tile.v[t][1][n];
#pragma unroll
          for (int c = 0; c < CH; c++) {
            h[c][n] = fmaf(ex2(s[c] * a[c][n]), h[c][n], u[c] * B);
            y[c] = fmaf(h[c][n], C, y[c]);
          }
        }
        finish<V>(mail, t, y);
      }
    }
    __syncwarp();
  }
};

extern "C" __global__ void __launch_bounds__(32 * WALKERS, 12 / WALKERS) scan_forward(const __grid_constant__ Scan p,
                                                                                    const __grid_constant__ ForwardOut o) {
  __shared__ __align__(16) WarpShared sm[WALKERS];
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
