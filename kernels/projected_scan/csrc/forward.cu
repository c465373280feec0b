// Forward of the projected scan. A block owns 16 channels of a few images and holds their merged output in shared memory,
// so that the routes, one after the other, add to it without partial maps in device memory. Within a route, its threads
// scan a round of 8 x warps segments at a time: each segment from zero, then the state entering it from those before.
// Defines besides those of common.cuh: THREADS (largest block), SAVE (whether to save the state before every segment).
#include "common.cuh"

struct Out {
  io_t *out;     // (B, L, E)
  float *saved;  // (B, K, segments, NS, E), in units of ln 2
};

struct Walker {
  const Scan &p;
  const Out &o;
  float *room, *links;
  float4 *y, *maps;  // of the image at hand, and of all
  link_barrier_t *barriers;
  unsigned parity;  // of the phase that the next wait is for
  Weights weights;
  Selector selector;
  float a[4][NS], bias[4];
  int lane, g, t, warp, warps, e_count, first_image, b, channel, route;
  const char *x, *proj;  // at the lane's first channel, and at its part of the route's projections

  // Of the current round: decays since the segment's start, states from zero, C.
  float P[S][4][NS], h[S][4][NS], C[S][NS];
  quad_t raw_x[S];
  Row rows[S + 1];
  Segment at;

  __device__ __forceinline__ Walker(const Scan &p, const Out &o, char *shared) : p(p), o(o) {
    lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    first_image = blockIdx.x / p.tiles * (MANY ? p.images : 1);
    channel = (blockIdx.x % p.tiles) * TILE;
    e_count = min(TILE, p.E - channel);
    maps = (float4 *)shared;
    links = (float *)(shared + (MANY ? p.images : 1) * p.slots * TILE * 4);
    barriers = (link_barrier_t *)(links + p.kept * warps * NS * TILE);
    parity = 0;
    if (!SOLO) {
      if (lane == 0) set_up(barriers + warp);
      __syncthreads();
    }
    float *rooms = (float *)(barriers + MOST_WARPS);
    room = rooms + warp * NS * 2 * ROOM;
    weights.shared = (Weights::part_t *)(rooms + warps * NS * 2 * ROOM);
    selector.load(g, t);
  }
  __device__ __forceinline__ void start_image(int k, int image) {
    b = first_image + image;
    y = MANY ? maps + image * p.slots * 4 : maps;
    // Lanes beyond the last channel read the tile's first ones; their results are dropped.
    x = (const char *)(p.x + (long long)b * p.L * p.E + channel + (4 * t < e_count ? 4 * t : 0));
    proj = (const char *)(p.proj + b * p.proj_b + k * p.proj_k) + t * 4;
  }
  template <int K> __device__ __forceinline__ int at_route() const { return K == ANY ? route : K; }
  __device__ __forceinline__ void start_route(int k) {
    route = k;
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

  template <int K> __device__ __forceinline__ void load(const Segment &s, const Route &r) {
    const int x_row = channels_of(p) * (int)sizeof(io_t), proj_row = row_of(p) * (int)sizeof(io_t);
    const char *x_at = x + (long long)s.pos * x_row, *proj_at = proj + (long long)s.pos * proj_row;
#pragma unroll
    for (int i = 0; i < S; i++) {
      raw_x[i] = load_at<quad_t>(x_at, 0);
      rows[i] = load_row(proj_at);
      const int stride = there(s, i + 1) || !RAGGED ? stride_of<K>(r) : 0;
      x_at += stride * x_row, proj_at += stride * proj_row;
    }
  }

  __device__ __forceinline__ void scan_segment() {
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
          if (RAGGED) step = i < at.count ? step : 0.f;
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

  // The first route starts every position with what the skip weights add, in y's units of ln 2.
  template <int K>
  __device__ __forceinline__ void add_output(const Route &r, int i, quad_t skipped, const float (&skip)[4],
                                             const float (&entry)[4][NS]) {
    const bool first = at_route<K>() == 0, last = at_route<K>() == routes_of(p) - 1;
    const bool real = there(at, i);
    float4 &kept = y[(at.slot + inside(at, i) * slot_stride_of<K>(r)) * 4 + t];
    float v[4];
    if (first) {
      const float4 x4 = widen(skipped);
      v[0] = skip[0] * x4.x, v[1] = skip[1] * x4.y, v[2] = skip[2] * x4.z, v[3] = skip[3] * x4.w;
    } else {
      const float4 old = kept;
      v[0] = old.x, v[1] = old.y, v[2] = old.z, v[3] = old.w;
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
      for (int n = 0; n < NS; n++) v[c] = fmaf(C[i][n], fmaf(P[i][c][n], entry[c][n], h[i][c][n]), v[c]);
    if (!last) {
      if (real) kept = make_float4(v[0], v[1], v[2], v[3]);
    } else if (real && 4 * t < e_count) {
      const long long pos = (long long)b * p.L + at.pos + i * stride_of<K>(r);
      const float by = LN2 * p.scale;
      *(quad_t *)(o.out + pos * channels_of(p) + channel + 4 * t) =
          narrow(make_float4(by * v[0], by * v[1], by * v[2], by * v[3]));
    }
  }
  __device__ __forceinline__ void save(int k, const float (&entry)[4][NS]) {
    if (at.count == 0 || 4 * t >= e_count) return;
    float *to = o.saved + (((long long)b * p.K + k) * p.segments + at.index) * NS * channels_of(p) + channel + 4 * t;
#pragma unroll
    for (int n = 0; n < NS; n++)
      *(float4 *)(to + n * channels_of(p)) = make_float4(entry[0][n], entry[1][n], entry[2][n], entry[3][n]);
  }

  template <int K> __device__ __forceinline__ void walk_image(const Route &r, const float (&skip)[4]) {
    at = segment_of(r, 0, warps, warp, g);
    load<K>(at, r);
#pragma unroll 1
    for (int round = 0; round < p.rounds; round++) {
      const bool more = round + 1 < p.rounds;
      scan_segment();
      float through[4][NS], entry[4][NS];
#pragma unroll
      for (int c = 0; c < 4; c++)
#pragma unroll
        for (int n = 0; n < NS; n++) through[c][n] = P[S - 1][c][n], entry[c][n] = h[S - 1][c][n];
      enter<false>(p, round, room, links, barriers, parity, through, entry, lane, warp, warps);
      if (SAVE) save(at_route<K>(), entry);
      quad_t skipped[S];
#pragma unroll
      for (int i = 0; i < S; i++) skipped[i] = raw_x[i];
      const Segment next = segment_of(r, round + 1, warps, warp, g);
      if (more) load<K>(next, r);  // after the carries, which would otherwise wait behind it
      if (at.count > 0)  // a lane without a segment would read what others write
#pragma unroll
        for (int i = 0; i < S; i++) add_output<K>(r, i, skipped[i], skip, entry);
      at = next;
    }
  }
  template <int K> __device__ __forceinline__ void walk() {
    const int k = at_route<K>();
    const Route &r = p.routes[k];
    float skip[4] = {};
    if (k == 0 && p.D && 4 * t < e_count)
      for (int i = 0; i < routes_of(p); i++)
#pragma unroll
        for (int c = 0; c < 4; c++) skip[c] += LOG2E * p.D[(long long)i * p.E + channel + 4 * t + c];
    const int images = MANY ? min(p.images, p.batch - first_image) : 1;
#pragma unroll 1
    for (int image = 0; image < images; image++) {
      if (image) __syncthreads();  // a warp's carries of the last image have been taken
      start_image(k, image);
      walk_image<K>(r, skip);
    }
  }
#ifdef FIXED
  template <int K> __device__ __forceinline__ void walk_from() {
    if (K) __syncthreads();  // the routes add to the same map
    start_route(K);
    walk<K>();
    if constexpr (K + 1 < ROUTES) walk_from<K + 1>();
  }
#endif
  __device__ __forceinline__ void walk_all() {
#ifdef FIXED
    walk_from<0>();
#else
#pragma unroll 1
    for (int k = 0; k < p.K; k++) {
      if (k) __syncthreads();
      start_route(k);
      walk<ANY>();
    }
#endif
  }
};

// Shared memory: y (images, slots, 16) floats, links (kept, warps, NS, 16), their barriers, the warps' rooms
// (NS, 2, ROOM), the weights where kept there.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    projected_forward(const __grid_constant__ Scan p, const __grid_constant__ Out o) {
  extern __shared__ float4 shared[];
  Walker w(p, o, (char *)shared);
  w.walk_all();
}
