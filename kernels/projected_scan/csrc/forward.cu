// Forward of the projected scan. A block owns 16 channels of one image and holds their merged output in shared memory,
// so that the routes, one after the other, add to it without partial maps in device memory. Within a route, its threads
// scan a round of 8 x warps segments at a time: each segment from zero, then the state entering it from those before.
// Defines besides those of common.cuh: THREADS (largest block), SAVE (0, or steps between saved states).
#include "common.cuh"

struct Out {
  io_t *out;     // (B, L, E)
  float *saved;  // (B, K, ceil(L / SAVE), NS, E): state before every SAVE-th step, in units of ln 2
};

constexpr int MAX_WARPS = THREADS / 32, BATCH = 12;

struct Walker {
  const Scan &p;
  const Out &o;
  Carries<MAX_WARPS> &carries;
  float4 *y;
  Weights weights;
  Selector selector;
  float a[4][NS], bias[4];
  int lane, g, t, warp, warps, e_count, b, channel;
  const io_t *x;  // of the image's tile; the same for all lanes
  unsigned x_lane;

  // Of the current round: decays since the segment's start, states from zero, C.
  float P[S][4][NS], h[S][4][NS], C[S][NS];
  int pos[S];

  __device__ __forceinline__ Walker(const Scan &p, const Out &o, Carries<MAX_WARPS> &carries, float4 *y, char *room)
      : p(p), o(o), carries(carries), y(y) {
    lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    b = blockIdx.x / p.tiles;
    channel = (blockIdx.x % p.tiles) * TILE;
    e_count = min(TILE, p.E - channel);
    weights.shared = (Weights::part_t *)room;
    selector.load(g, t);
    x = p.x + (long long)b * p.L * p.E + channel;
    // Lanes beyond the last channel read the tile's first ones; their results are dropped.
    x_lane = (4 * t < e_count ? 4 * t : 0) * sizeof(io_t);
  }
  __device__ __forceinline__ void start_route(int k) {
    const long long ke = (long long)k * p.E + channel;
    weights.load(p.W + ke * R, e_count, g, t, warp == 0);
    const bool ok = 4 * t < e_count;
#pragma unroll
    for (int c = 0; c < 4; c++) {
      bias[c] = p.bias && ok ? p.bias[ke + 4 * t + c] * LOG2E : 0.f;
#pragma unroll
      for (int n = 0; n < NS; n++) a[c][n] = ok ? p.A[(ke + 4 * t + c) * NS + n] : 0.f;
    }
    if (WIDE_WEIGHTS) __syncthreads();
  }

  template <bool GUARD> __device__ __forceinline__ void scan_segment(int k, int t0, int count) {
    const io_t *proj = p.proj + b * p.proj_b + k * p.proj_k;
    const unsigned x_row = p.E * (unsigned)sizeof(io_t), proj_row = p.proj_l * (unsigned)sizeof(io_t);
    positions<GUARD>(p.routes[k], t0, count, pos);
    quad_t raw_x[S];
    Row rows[S + 1];
#pragma unroll
    for (int i = 0; i < S; i++) {
      raw_x[i] = load_at<quad_t>(x, (unsigned)pos[i] * x_row + x_lane);
      rows[i] = load_row(proj, (unsigned)pos[i] * proj_row, t);
    }
    rows[S] = rows[S - 1];
#pragma unroll
    for (int i0 = 0; i0 < S; i0 += 2) {
      const Projected v = project(rows[i0], rows[i0 + 1], weights, selector, bias, lane);
#pragma unroll
      for (int i = i0; i < i0 + 2; i++) {
        if (i >= S) break;
        const float4 wide = widen(raw_x[i]);
        const float xs[4] = {wide.x, wide.y, wide.z, wide.w};
#pragma unroll
        for (int c = 0; c < 4; c++) {
          float step = softplus2(v.raw[i - i0][c]);
          if (GUARD) step = i < count ? step : 0.f;
          const float in = step * xs[c];
#pragma unroll
          for (int n = 0; n < NS; n++) {
            const float decay = ex2(step * a[c][n]), add = in * v.B[i - i0][n];
            P[i][c][n] = i ? P[i ? i - 1 : 0][c][n] * decay : decay;
            h[i][c][n] = i ? fmaf(decay, h[i ? i - 1 : 0][c][n], add) : add;
          }
        }
#pragma unroll
        for (int n = 0; n < NS; n++) C[i][n] = v.C[i - i0][n];
      }
    }
  }

  template <bool GUARD, bool LAST>
  __device__ __forceinline__ void add_outputs(int k, int t0, int count, const float (&entry)[4][NS]) {
#if SAVE
    const int steps = (p.L + SAVE - 1) / SAVE;
    int m = (t0 + SAVE - 1) / SAVE, next = m * SAVE - t0;
    float *to = o.saved + (((long long)b * p.K + k) * steps + m) * NS * p.E + channel + 4 * t;
#endif
    float4 *y_lane = y + t;
    float before[4][NS];
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
      for (int n = 0; n < NS; n++) before[c][n] = entry[c][n];
    const float by = LN2 * p.scale;
    const long long image = (long long)b * p.L * p.E + channel + 4 * t;
#pragma unroll
    for (int i = 0; i < S; i++) {
      if (GUARD && i >= count) break;
      float4 &at = y_lane[slot(pos[i], p.rows_magic) * 4];
      float v[4] = {at.x, at.y, at.z, at.w};
#if SAVE
      if (i == next) {
        if (4 * t < e_count)
#pragma unroll
          for (int n = 0; n < NS; n++)
            *(float4 *)(to + n * p.E) = make_float4(before[0][n], before[1][n], before[2][n], before[3][n]);
        to += NS * p.E, next += SAVE;
      }
#endif
#pragma unroll
      for (int c = 0; c < 4; c++)
#pragma unroll
        for (int n = 0; n < NS; n++) {
          before[c][n] = fmaf(P[i][c][n], entry[c][n], h[i][c][n]);
          v[c] = fmaf(C[i][n], before[c][n], v[c]);
        }
      if (!LAST) at = make_float4(v[0], v[1], v[2], v[3]);
      else if (4 * t < e_count)
        *reinterpret_cast<quad_t *>(o.out + image + (long long)pos[i] * p.E) =
            narrow(make_float4(by * v[0], by * v[1], by * v[2], by * v[3]));
    }
  }

  __device__ __forceinline__ void walk(int k) {
#pragma unroll 1
    for (int round = 0; round < p.rounds; round++) {
      const int first = (round * warps + warp) * WARP_TOKENS, t0 = first + g * S, count = min(max(p.L - t0, 0), S);
      const bool whole = first + WARP_TOKENS <= p.L;
      if (whole) scan_segment<false>(k, t0, count);
      else scan_segment<true>(k, t0, count);
      float through[4][NS], entry[4][NS];
#pragma unroll
      for (int c = 0; c < 4; c++)
#pragma unroll
        for (int n = 0; n < NS; n++) through[c][n] = P[S - 1][c][n], entry[c][n] = h[S - 1][c][n];
      enter<false>(carries, round == 0, round + 1 == p.rounds, through, entry, lane, warp, warps);
      if (k + 1 == p.K && whole) add_outputs<false, true>(k, t0, count, entry);
      else if (k + 1 == p.K) add_outputs<true, true>(k, t0, count, entry);
      else if (whole) add_outputs<false, false>(k, t0, count, entry);
      else add_outputs<true, false>(k, t0, count, entry);
    }
  }

  // y starts as what the skip weights add: x times the sum of D, in y's units of ln 2.
  __device__ __forceinline__ void start() {
    const int q = threadIdx.x & 3;
    float skip[4] = {};
    if (p.D && 4 * q < e_count)
      for (int r = 0; r < p.K; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) skip[c] += LOG2E * p.D[(long long)r * p.E + channel + 4 * q + c];
    const int stride = blockDim.x >> 2;
#pragma unroll 1
    for (int first = threadIdx.x >> 2; first < p.L; first += BATCH * stride) {
      quad_t u[BATCH];  // all on their way before the first is used
#pragma unroll
      for (int i = 0; i < BATCH; i++)
        u[i] = load_at<quad_t>(x, (unsigned)min(first + i * stride, p.L - 1) * (p.E * (unsigned)sizeof(io_t)) + x_lane);
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        const int l = first + i * stride;
        const float4 v = widen(u[i]);
        if (l < p.L)
          y[slot(l, p.rows_magic) * 4 + q] = make_float4(skip[0] * v.x, skip[1] * v.y, skip[2] * v.z, skip[3] * v.w);
      }
    }
    __syncthreads();
  }
};

// Shared memory: y (L, 16) floats with L rounded up to even, the weights where they are kept there.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    projected_forward(const __grid_constant__ Scan p, const __grid_constant__ Out o) {
  extern __shared__ float4 y[];
  __shared__ Carries<MAX_WARPS> carries;
  Walker w(p, o, carries, y, (char *)(y + (p.L + 1) / 2 * 8));
  w.start();
#pragma unroll 1
  for (int k = 0; k < p.K; k++) {
    if (k) __syncthreads();  // the routes add to the same map
    w.start_route(k);
    w.walk(k);
  }
}
