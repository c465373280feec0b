// Backward of the projected scan. A block owns 16 channels of a few images, and holds the gradient of x in shared memory.
// Routes are walked one after the other, each from its end: in a round, a lane recomputes its segment's states from the
// saved one, then takes the adjoint g_t = C_t dy_t + decay_{t+1} g_{t+1} from zero, and once more from what enters from
// behind. Sums over channels (the projections' gradients) and over tokens (the weights') are matrix products of a warp.
// No atomics: channel tiles leave partial sums, which merge.cu adds in order.
// Defines besides those of common.cuh: THREADS (largest block).
#include "common.cuh"

constexpr int QP = KB * 8;                // floats of a token's sums: dlow, dB and dC (in units of ln 2), padding
constexpr int RB = (R + 7) / 8;
[[maybe_unused]] constexpr int MB = (R + 15) / 16;  // blocks of 16 rows of the weights' gradient

struct Out {
  const io_t *dy;      // (B, L, E)
  const float *saved;  // (B, K, segments, NS, E)
  io_t *dx;            // (B, L, E)
  float *sums;         // (tiles, B, L, K, QP)
  float *dW, *dA, *dbias;  // (blocks of images, K, E, R), (..., K, E, NS), (..., K, E)
  float *dD;           // (blocks of images, E), the same for all routes
  float *draw;         // float32: (B, K, L, E), from which the caller makes dW; else null
};

__device__ __forceinline__ unsigned transposed(unsigned v) {
  unsigned w;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(w) : "r"(v));
  return w;
}
#if IO
__device__ __forceinline__ void mma_k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32." HALF_TYPES
      ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
// The tensor cores cut what they do not take; rounding a constant operand halves what that costs.
__device__ __forceinline__ float nearest_tf32(float v) {
  return __uint_as_float((__float_as_uint(v) + 0x1000u) & 0xffffe000u);
}
// d[token][column] += a[token][i] b_i[column], summed over the four lanes of a token: a holds i = 0 of both tokens,
// then i = 1; a lane gives b_i of its own channel (or whatever i stands for) and column.
__device__ __forceinline__ void lane_sum(float (&d)[4], const float (&a)[4], float b0, float b1) {
#if IO == 0
  float high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; i++) high[i] = high_part(a[i]), low[i] = a[i] - high[i];
  const float h0 = high_part(b0), h1 = high_part(b1);
  mma_tf32(d, low, h0, h1, d);
  mma_tf32(d, high, b0 - h0, b1 - h1, d);
  mma_tf32(d, high, h0, h1, d);
#else
  mma_tf32(d, a, b0, b1, d);
#endif
}
// Written once and read by another kernel: not to push x and dy out of the cache.
__device__ __forceinline__ void store_once(float *at, float a, float b) {
  __stcs(reinterpret_cast<float2 *>(at), make_float2(a, b));
}

// Of a warp: the exchange of carries, and between routes its sums.
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
#if IO
constexpr int WARP_ROOM = larger(NS * 2 * ROOM, larger(TILE * (NS + 1), MB * 256));
#else
constexpr int WARP_ROOM = larger(NS * 2 * ROOM, TILE * (NS + 1));
#endif
[[maybe_unused]] constexpr int WIDE_BYTES = WEIGHT_BYTES + (WIDE_WEIGHTS ? RB * 2 * 32 * (int)sizeof(float2) : 0);

struct Walker {
  const Scan &p;
  const Out &o;
  float *exchange, *links, *room;
  float4 *dx, *maps;  // of the image at hand, and of all
  link_barrier_t *barriers;
  unsigned parity;  // of the phase that the next wait is for
  Weights weights;
  Selector selector;
  float2 *wide_columns;  // columns of dlow where weights are wide
  float2 columns[WIDE_WEIGHTS ? 1 : RB][2];
  float a[4][NS], bias[4];
  int lane, g, t, warp, warps, e_count, group, b, channel, route;
  const char *x, *dy;  // at the lane's first channel
  const char *proj;
  // Sums over the route's tokens.
  float dA[4][NS], dbias[4];
#if IO
  float dW[MB][2][4];
#endif

  // Of the current round.
  float step[S][4], slope[S][4], decay[S][4][NS], h[S][4][NS], entry[4][NS], B[S][NS], C[S][NS];
  quad_t raw_x[S], raw_dy[S];
  Row rows[S + 1];
  Segment at;

  __device__ __forceinline__ Walker(const Scan &p, const Out &o, char *shared) : p(p), o(o) {
    lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    group = blockIdx.x / p.tiles;
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
    room = (float *)(barriers + MOST_WARPS);
    exchange = room + warp * NS * 2 * ROOM;
    char *wide = (char *)(room + warps * WARP_ROOM);
    weights.shared = (Weights::part_t *)wide;
    wide_columns = (float2 *)(wide + WEIGHT_BYTES);
    selector.load(g, t);
  }
  __device__ __forceinline__ void start_image(int k, int image) {
    b = MANY ? group * p.images + image : group;
    dx = MANY ? maps + image * p.slots * 4 : maps;
    // Lanes beyond the last channel read the tile's first ones; their dy is zero, and what they find is dropped.
    const long long at = (long long)b * p.L * p.E + channel + (4 * t < e_count ? 4 * t : 0);
    x = (const char *)(p.x + at), dy = (const char *)(o.dy + at);
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
      for (int n = 0; n < NS; n++) a[c][n] = ok ? p.A[(ke + 4 * t + c) * NS + n] : 0.f, dA[c][n] = 0.f;
      dbias[c] = 0.f;
    }
#pragma unroll
    for (int r = 0; r < RB; r++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float2 w = make_float2(0.f, 0.f);
        if (ok && r * 8 + g < R) {
          const float *at = p.W + (ke + 4 * t + 2 * c) * R + r * 8 + g;
          w = make_float2(at[0], at[R]);
#if IO
          w = make_float2(nearest_tf32(w.x), nearest_tf32(w.y));
#endif
        }
        if (!WIDE_WEIGHTS) columns[r][c] = w;
        else if (warp == 0) wide_columns[(r * 2 + c) * 32 + lane] = w;
      }
#if IO
#pragma unroll
    for (int m = 0; m < MB; m++)
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) dW[m][c][i] = 0.f;
#endif
    if (WIDE_WEIGHTS) __syncthreads();
  }

  template <int K> __device__ __forceinline__ void load(const Route &r) {
    const long long segment = ((long long)b * p.K + at_route<K>()) * p.segments + min(at.index, r.total - 1);
    const float *from = o.saved + segment * NS * channels_of(p) + channel + (4 * t < e_count ? 4 * t : 0);
#pragma unroll
    for (int n = 0; n < NS; n++) {
      const float4 v = load_at<float4>(from + n * channels_of(p), 0);
      entry[0][n] = v.x, entry[1][n] = v.y, entry[2][n] = v.z, entry[3][n] = v.w;
    }
    const int x_row = channels_of(p) * (int)sizeof(io_t), proj_row = row_of(p) * (int)sizeof(io_t);
    const long long first = (long long)at.pos * x_row;
    const char *x_at = x + first, *dy_at = dy + first, *proj_at = proj + (long long)at.pos * proj_row;
#pragma unroll
    for (int i = 0; i < S; i++) {
      raw_x[i] = load_at<quad_t>(x_at, 0);
      rows[i] = load_row(proj_at);
      const int stride = there(at, i + 1) || !RAGGED ? stride_of<K>(r) : 0;
      x_at += stride * x_row, proj_at += stride * proj_row;
    }
    rows[S] = rows[S - 1];
#pragma unroll
    for (int i = 0; i < S; i++) {
      raw_dy[i] = load_at<quad_t>(dy_at, 0);
      dy_at += (there(at, i + 1) || !RAGGED ? stride_of<K>(r) : 0) * x_row;
    }
  }
  __device__ __forceinline__ float4 dy_of(int i) const { return widen(raw_dy[i]); }

  // States of the segment, and its adjoint from zero: what leaves it towards its start, and the product of its decays.
  __device__ __forceinline__ void recompute(float (&through)[4][NS], float (&leaves)[4][NS]) {
#pragma unroll
    for (int i0 = 0; i0 < S; i0 += 2) {
      const Projected v = project(rows[i0], rows[i0 + 1], weights, selector, bias, lane);
#pragma unroll
      for (int i = i0; i < i0 + 2; i++) {
        if (i >= S) break;
        const float4 x4 = widen(raw_x[i]);
        const float xs[4] = {x4.x, x4.y, x4.z, x4.w};
#pragma unroll
        for (int n = 0; n < NS; n++) B[i][n] = v.B[i - i0][n], C[i][n] = v.C[i - i0][n];
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const float raw = v.raw[i - i0][c];
          step[i][c] = softplus2(raw);
          slope[i][c] = ex2(raw - step[i][c]);  // 2^raw / (1 + 2^raw), and 1 + 2^raw = 2^step
          if (RAGGED && i >= at.count) step[i][c] = slope[i][c] = 0.f;
          const float in = step[i][c] * xs[c];
#pragma unroll
          for (int n = 0; n < NS; n++) {
            decay[i][c][n] = ex2(step[i][c] * a[c][n]);
            h[i][c][n] = fmaf(decay[i][c][n], i ? h[i ? i - 1 : 0][c][n] : entry[c][n], in * B[i][n]);
          }
        }
      }
    }
    if (__any_sync(~0u, at.count < S || 4 * t >= e_count))
#pragma unroll
      for (int i = 0; i < S; i++)
        if (i >= at.count || 4 * t >= e_count) raw_dy[i] = quad_t{};
#pragma unroll
    for (int i = S - 1; i >= 0; i--) {
      const float4 d4 = dy_of(i);
      const float dy[4] = {d4.x, d4.y, d4.z, d4.w};
#pragma unroll
      for (int c = 0; c < 4; c++)
#pragma unroll
        for (int n = 0; n < NS; n++) {
          const bool last = i == S - 1;
          leaves[c][n] = decay[i][c][n] * (last ? C[i][n] * dy[c] : fmaf(C[i][n], dy[c], leaves[c][n]));
          through[c][n] = last ? decay[i][c][n] : through[c][n] * decay[i][c][n];
        }
    }
  }

  // One token's gradients; `back` is decay_{t+1} g_{t+1}. dB and dC are summed over the lane's channels.
  __device__ __forceinline__ void step_back(int i, const float (&rate)[4][NS], float (&back)[4][NS], float (&draw)[4],
                                            float (&dB)[NS], float (&dC)[NS], float (&d_in)[4]) {
    const float4 x4 = widen(raw_x[i]), d4 = dy_of(i);
    const float xs[4] = {x4.x, x4.y, x4.z, x4.w}, dy[4] = {d4.x, d4.y, d4.z, d4.w};
#pragma unroll
    for (int c = 0; c < 4; c++) {
      float d_exp;
      const float in = step[i][c] * xs[c];
#pragma unroll
      for (int n = 0; n < NS; n++) {
        const float adjoint = fmaf(C[i][n], dy[c], back[c][n]);
        back[c][n] = decay[i][c][n] * adjoint;
        const float d_decay = back[c][n] * (i ? h[i ? i - 1 : 0][c][n] : entry[c][n]);
        dC[n] = c ? fmaf(dy[c], h[i][c][n], dC[n]) : dy[c] * h[i][c][n];
        dB[n] = c ? fmaf(in, adjoint, dB[n]) : in * adjoint;
        d_in[c] = n ? fmaf(adjoint, B[i][n], d_in[c]) : adjoint * B[i][n];
        d_exp = n ? fmaf(d_decay, rate[c][n], d_exp) : d_decay * rate[c][n];
        dA[c][n] = fmaf(d_decay, step[i][c], dA[c][n]);
      }
      draw[c] = fmaf(d_in[c], xs[c], d_exp) * slope[i][c];
      dbias[c] += draw[c];
    }
  }

  template <int K>
  __device__ __forceinline__ void walk_back(const Route &r, const float (&skip)[4], float (&dD)[4],
                                            float (&back)[4][NS]) {
    float rate[4][NS];
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
      for (int n = 0; n < NS; n++) rate[c][n] = a[c][n] * LN2;
#pragma unroll
    for (int i0 = (S - 1) / 2 * 2; i0 >= 0; i0 -= 2) {
      float draw[2][4] = {}, dB[2][NS] = {}, dC[2][NS] = {};
#pragma unroll
      for (int j = 1; j >= 0; j--) {
        const int i = i0 + j;
        if (i >= S) continue;
        float d_in[4];
        step_back(i, rate, back, draw[j], dB[j], dC[j], d_in);
        add_to_x<K>(r, i, skip, dD, d_in, draw[j]);
      }
      add_channels<K>(r, i0, draw, dB, dC);
      add_tokens(i0, draw);
    }
  }
  template <int K>
  __device__ __forceinline__ void add_to_x(const Route &r, int i, const float (&skip)[4], float (&dD)[4],
                                           const float (&d_in)[4], [[maybe_unused]] const float (&draw)[4]) {
    const int k = at_route<K>();
    const bool real = there(at, i);
    float4 &kept = dx[(at.slot + inside(at, i) * slot_stride_of<K>(r)) * 4 + t];
    float v[4];
    if (k == 0) {
      const float4 x4 = widen(raw_x[i]), d4 = dy_of(i);
      v[0] = skip[0] * d4.x, v[1] = skip[1] * d4.y, v[2] = skip[2] * d4.z, v[3] = skip[3] * d4.w;
      dD[0] = fmaf(d4.x, x4.x, dD[0]), dD[1] = fmaf(d4.y, x4.y, dD[1]);
      dD[2] = fmaf(d4.z, x4.z, dD[2]), dD[3] = fmaf(d4.w, x4.w, dD[3]);
    } else {
      float4 old = make_float4(0.f, 0.f, 0.f, 0.f);
      if (at.count > 0) old = kept;  // a lane without a segment would read what others write
      v[0] = old.x, v[1] = old.y, v[2] = old.z, v[3] = old.w;
    }
#pragma unroll
    for (int c = 0; c < 4; c++) v[c] = fmaf(d_in[c], step[i][c], v[c]);
    const float by = LN2 * p.scale;
    const long long pos = at.pos + i * stride_of<K>(r);
    if (k + 1 < routes_of(p)) {
      if (real) kept = make_float4(v[0], v[1], v[2], v[3]);
    } else if (real && 4 * t < e_count)
      *reinterpret_cast<quad_t *>(o.dx + ((long long)b * p.L + pos) * channels_of(p) + channel + 4 * t) =
          narrow(make_float4(by * v[0], by * v[1], by * v[2], by * v[3]));
#if IO == 0
    if (real && 4 * t < e_count)
      *reinterpret_cast<float4 *>(o.draw + (((long long)b * p.K + k) * p.L + pos) * p.E + channel + 4 * t) =
          make_float4(p.scale * draw[0], p.scale * draw[1], p.scale * draw[2], p.scale * draw[3]);
#endif
  }
  // Sums over channels: dlow by the weights' columns, dB and dC by columns that are one in a single place.
  template <int K>
  __device__ __forceinline__ void add_channels(const Route &r, int i0, const float (&draw)[2][4], const float (&dB)[2][NS],
                                               const float (&dC)[2][NS]) {
    const int row = routes_of(p) * QP, step = stride_of<K>(r) * row;
    const long long image = (long long)(blockIdx.x % p.tiles) * p.batch + b;
    float *sums = o.sums + (image * p.L + at.pos) * row + at_route<K>() * QP + 2 * t;
#pragma unroll
    for (int q = 0; q < KB; q++) {
      float d[4] = {0.f, 0.f, 0.f, 0.f};
      if (q < RB)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const float2 kept = columns[WIDE_WEIGHTS || q >= RB ? 0 : q][c];
          const float2 w = WIDE_WEIGHTS ? wide_columns[(q * 2 + c) * 32 + lane] : kept;
          lane_sum(d, {draw[0][2 * c], draw[1][2 * c], draw[0][2 * c + 1], draw[1][2 * c + 1]}, w.x, w.y);
        }
#pragma unroll
      for (int n = 0; n < NS; n++) {
        const bool b_here = (R + n) / 8 == q, c_here = (R + NS + n) / 8 == q;
        if (b_here || c_here)
          lane_sum(d, {dB[0][n], dB[1][n], dC[0][n], dC[1][n]}, b_here && g == (R + n) % 8 ? 1.f : 0.f,
                   c_here && g == (R + NS + n) % 8 ? 1.f : 0.f);
      }
      if (there(at, i0)) store_once(sums + q * 8 + i0 * step, d[0], d[1]);
      if (i0 + 1 < S && there(at, i0 + 1)) store_once(sums + q * 8 + (i0 + 1) * step, d[2], d[3]);
    }
  }
  __device__ __forceinline__ void add_tokens(int i0, const float (&draw)[2][4]) {
#if IO
    unsigned columns_of[2][2];
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int c = 0; c < 2; c++)
        columns_of[c][j] = i0 + j < S ? transposed(bits(pack(draw[j][2 * c], draw[j][2 * c + 1]))) : 0u;
#pragma unroll
    for (int m = 0; m < MB; m++) {
      unsigned r[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int block = 2 * m + (i & 1);
        r[i] = 0u;
        if (block < KB) r[i] = transposed(rows[i0 + (i >> 1)].w[block < KB ? block : 0]);
      }
#pragma unroll
      for (int c = 0; c < 2; c++) mma_k16(dW[m][c], r, columns_of[c][0], columns_of[c][1]);
    }
#endif
  }

  template <int K>
  __device__ __forceinline__ void walk_image(const Route &r, const float (&skip)[4], float (&dD)[4]) {
#pragma unroll 1
    for (int round = p.rounds - 1; round >= 0; round--) {
      at = segment_of(r, round, warps, warp, g);
      load<K>(r);
      float through[4][NS], back[4][NS];
      recompute(through, back);
      enter<true>(p, p.rounds - 1 - round, exchange, links, barriers, parity, through, back, lane, warp, warps);
      walk_back<K>(r, skip, dD, back);
    }
  }
  template <int K> __device__ __forceinline__ void walk() {
    const int k = at_route<K>();
    const Route &r = p.routes[k];
    float skip[4] = {}, dD[4] = {};
    if (k == 0 && p.D && 4 * t < e_count)
      for (int i = 0; i < routes_of(p); i++)
#pragma unroll
        for (int c = 0; c < 4; c++) skip[c] += LOG2E * p.D[(long long)i * p.E + channel + 4 * t + c];
    const int images = MANY ? min(p.images, p.batch - group * p.images) : 1;
#pragma unroll 1
    for (int image = 0; image < images; image++) {
      if (image) __syncthreads();  // a warp's carries of the last image have been taken
      start_image(k, image);
      walk_image<K>(r, skip, dD);
    }
    if (k == 0) finish_skip(dD);
    finish_route(k);
  }
#ifdef FIXED
  template <int K> __device__ __forceinline__ void walk_from() {
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
      start_route(k);
      walk<ANY>();
    }
#endif
  }

  // Sums of a lane's values over the block's segments, for channels 4 t + c; in lanes of g = 0 of warp 0.
  __device__ __forceinline__ void finish_route(int k) {
    const long long bke = ((long long)group * p.K + k) * p.E + channel;
    constexpr int PER = NS + 1;  // dA, then dbias
    float mine[4 * PER];
#pragma unroll
    for (int i = 0; i < 4 * PER; i++) {
      mine[i] = i / 4 < NS ? dA[i % 4][i / 4 < NS ? i / 4 : 0] : dbias[i % 4];
#pragma unroll
      for (int m = 4; m < 32; m <<= 1) mine[i] += __shfl_xor_sync(~0u, mine[i], m);
    }
    __syncthreads();
    if (g == 0)
#pragma unroll
      for (int i = 0; i < 4 * PER; i++) room[(warp * 16 + 4 * t + i % 4) * PER + i / 4] = mine[i];
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * PER; i += blockDim.x) {
      float v = 0.f;
      for (int w = 0; w < warps; w++) v += room[w * 16 * PER + i];
      const int e = i / PER, n = i % PER;
      if (e < e_count && n < NS) o.dA[(bke + e) * NS + n] = v * (LN2 * LN2 * p.scale);
      if (e < e_count && n == NS) o.dbias[bke + e] = v * p.scale;
    }
#if IO
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MB * 8; i++) room[(warp * MB * 8 + i) * 32 + lane] = dW[i >> 3][(i >> 2) & 1][i & 3];
    __syncthreads();
    for (int i = threadIdx.x; i < MB * 256; i += blockDim.x) {
      float v = 0.f;
      for (int w = 0; w < warps; w++) v += room[w * MB * 256 + i];
      const int l = i & 31, at = i >> 5, r = (at >> 3) * 16 + ((at >> 1) & 1) * 8 + (l >> 2);
      const int e = 4 * (l & 3) + 2 * ((at >> 2) & 1) + (at & 1);
      if (e < e_count && r < R) o.dW[(bke + e) * R + r] = v * p.scale;
    }
#endif
    __syncthreads();
  }

  __device__ __forceinline__ void finish_skip(float (&dD)[4]) {
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; c++) {
#pragma unroll
      for (int m = 4; m < 32; m <<= 1) dD[c] += __shfl_xor_sync(~0u, dD[c], m);
      if (g == 0) room[warp * 16 + 4 * t + c] = dD[c];
    }
    __syncthreads();
    if (threadIdx.x < e_count) {
      float v = 0.f;
      for (int w = 0; w < warps; w++) v += room[w * 16 + threadIdx.x];
      o.dD[(long long)group * p.E + channel + threadIdx.x] = v * p.scale;
    }
  }
};

// Shared memory: dx (images, slots, 16) floats, links (kept, warps, NS, 16), their barriers, the warps' rooms
// (WARP_ROOM), the weights where kept there.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    projected_backward(const __grid_constant__ Scan p, const __grid_constant__ Out o) {
  extern __shared__ float4 shared[];
  Walker w(p, o, (char *)shared);
  w.walk_all();
}
