// Backward of the projected scan. A block owns 16 channels of one image, and holds the gradient of x in shared memory.
// Routes are walked one after the other, each from its end: in a round, a lane recomputes its segment's states from the
// saved one, then takes the adjoint g_t = C_t dy_t + decay_{t+1} g_{t+1} from zero, and once more from what enters from
// behind. Sums over channels (the projections' gradients) and over tokens (the weights') are matrix products of a warp.
// No atomics: channel tiles leave partial sums, which merge.cu adds in order.
// Defines besides those of common.cuh: THREADS (largest block); S is also the distance of the saved states.
#include "common.cuh"

constexpr int QP = KB * 8;                // floats of a token's sums: dlow, dB and dC (in units of ln 2), padding
constexpr int RB = (R + 7) / 8;
[[maybe_unused]] constexpr int MB = (R + 15) / 16;  // blocks of 16 rows of the weights' gradient
constexpr int MAX_WARPS = THREADS / 32, BATCH = 12;

struct Out {
  const io_t *dy;      // (B, L, E)
  const float *saved;  // (B, K, ceil(L / S), NS, E)
  io_t *dx;            // (B, L, E)
  float *sums;         // (tiles, B, L, K, QP)
  float *dW, *dA, *dbias;  // (B, K, E, R), (B, K, E, NS), (B, K, E)
  float *dD;           // (B, E), the same for all routes
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
__device__ __forceinline__ void store_at(void *base, unsigned bytes, float a, float b) {
  __stcs(reinterpret_cast<float2 *>(static_cast<char *>(base) + bytes), make_float2(a, b));
}

constexpr int WIDE_BYTES = WEIGHT_BYTES + (WIDE_WEIGHTS ? RB * 2 * 32 * (int)sizeof(float2) : 0);

struct Walker {
  const Scan &p;
  const Out &o;
  Carries<MAX_WARPS> &carries;
  float4 *dx;
  Weights weights;
  Selector selector;
  float2 *wide_columns;  // columns of dlow where weights are wide
  float2 columns[WIDE_WEIGHTS ? 1 : RB][2];
  float a[4][NS], bias[4];
  int lane, g, t, warp, warps, e_count, b, k, channel;
  unsigned x_lane;
  // Sums over the route's tokens.
  float dA[4][NS], dbias[4];
#if IO
  float dW[MB][2][4];
#endif

  // Of the current round.
  float step[S][4], slope[S][4], decay[S][4][NS], h[S][4][NS], entry[4][NS], B[S][NS], C[S][NS];
  quad_t raw_x[S], raw_dy[S];
  Row rows[S + 1];
  int pos[S];

  __device__ __forceinline__ Walker(const Scan &p, const Out &o, Carries<MAX_WARPS> &carries, float4 *dx, char *wide)
      : p(p), o(o), carries(carries), dx(dx) {
    lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    b = blockIdx.x / p.tiles;
    channel = (blockIdx.x % p.tiles) * TILE;
    e_count = min(TILE, p.E - channel);
    // Lanes beyond the last channel read the tile's first ones; their dy is zero, and what they find is dropped.
    x_lane = (4 * t < e_count ? 4 * t : 0) * sizeof(io_t);
    weights.shared = (Weights::part_t *)wide;
    wide_columns = (float2 *)(wide + WEIGHT_BYTES);
    selector.load(g, t);
  }
  __device__ __forceinline__ void start_route() {
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

  template <bool GUARD> __device__ __forceinline__ void load(int t0, int count) {
    positions<GUARD>(p.routes[k], t0, count, pos);
    const unsigned x_row = p.E * (unsigned)sizeof(io_t), proj_row = p.proj_l * (unsigned)sizeof(io_t);
    const long long image = (long long)b * p.L * p.E + channel;
    const io_t *x = p.x + image, *dy = o.dy + image, *proj = p.proj + b * p.proj_b + k * p.proj_k;
    const int saves = (p.L + S - 1) / S;
    const float *from = o.saved + (((long long)b * p.K + k) * saves + min(t0 / S, saves - 1)) * NS * p.E + channel;
    from += 4 * t < e_count ? 4 * t : 0;
#pragma unroll
    for (int n = 0; n < NS; n++) {
      const float4 v = load_at<float4>(from, n * p.E * 4);
      entry[0][n] = v.x, entry[1][n] = v.y, entry[2][n] = v.z, entry[3][n] = v.w;
    }
#pragma unroll
    for (int i = 0; i < S; i++) {
      raw_x[i] = load_at<quad_t>(x, (unsigned)pos[i] * x_row + x_lane);
      rows[i] = load_row(proj, (unsigned)pos[i] * proj_row, t);
      raw_dy[i] = load_at<quad_t>(dy, (unsigned)pos[i] * x_row + x_lane);
    }
    rows[S] = rows[S - 1];
  }

  // States of the segment, and its adjoint from zero: what leaves it towards its start, and the product of its decays.
  template <bool GUARD>
  __device__ __forceinline__ void recompute(int count, float (&through)[4][NS], float (&leaves)[4][NS]) {
#pragma unroll
    for (int i0 = 0; i0 < S; i0 += 2) {
      const Projected v = project(rows[i0], rows[i0 + 1], weights, selector, bias, lane);
#pragma unroll
      for (int i = i0; i < i0 + 2; i++) {
        if (i >= S) break;
        if ((GUARD && i >= count) || 4 * t >= e_count) raw_dy[i] = quad_t{};
        const float4 x4 = widen(raw_x[i]);
        const float xs[4] = {x4.x, x4.y, x4.z, x4.w};
#pragma unroll
        for (int n = 0; n < NS; n++) B[i][n] = v.B[i - i0][n], C[i][n] = v.C[i - i0][n];
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const float raw = v.raw[i - i0][c];
          step[i][c] = softplus2(raw);
          slope[i][c] = ex2(raw - step[i][c]);  // 2^raw / (1 + 2^raw), and 1 + 2^raw = 2^step
          if (GUARD && i >= count) step[i][c] = slope[i][c] = 0.f;
          const float in = step[i][c] * xs[c];
#pragma unroll
          for (int n = 0; n < NS; n++) {
            decay[i][c][n] = ex2(step[i][c] * a[c][n]);
            h[i][c][n] = fmaf(decay[i][c][n], i ? h[i ? i - 1 : 0][c][n] : entry[c][n], in * B[i][n]);
          }
        }
      }
    }
#pragma unroll
    for (int i = S - 1; i >= 0; i--) {
      const float4 d4 = widen(raw_dy[i]);
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
    const float4 x4 = widen(raw_x[i]), d4 = widen(raw_dy[i]);
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

  template <bool GUARD, bool LAST> __device__ __forceinline__ void walk_back(int count, float (&back)[4][NS]) {
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
        if (!GUARD || i < count) add_to_x<LAST>(i, d_in, draw[j]);
      }
      add_channels<GUARD>(i0, count, draw, dB, dC);
      add_tokens(i0, draw);
    }
  }
  template <bool LAST>
  __device__ __forceinline__ void add_to_x(int i, const float (&d_in)[4], [[maybe_unused]] const float (&draw)[4]) {
    float4 &at = dx[slot(pos[i], p.rows_magic) * 4 + t];
    const float4 v = make_float4(fmaf(d_in[0], step[i][0], at.x), fmaf(d_in[1], step[i][1], at.y),
                                 fmaf(d_in[2], step[i][2], at.z), fmaf(d_in[3], step[i][3], at.w));
    const float by = LN2 * p.scale;
    if (!LAST) at = v;
    else if (4 * t < e_count)
      *reinterpret_cast<quad_t *>(o.dx + ((long long)b * p.L + pos[i]) * p.E + channel + 4 * t) =
          narrow(make_float4(by * v.x, by * v.y, by * v.z, by * v.w));
#if IO == 0
    if (4 * t < e_count)
      *reinterpret_cast<float4 *>(o.draw + (((long long)b * p.K + k) * p.L + pos[i]) * p.E + channel + 4 * t) =
          make_float4(p.scale * draw[0], p.scale * draw[1], p.scale * draw[2], p.scale * draw[3]);
#endif
  }
  // Sums over channels: dlow by the weights' columns, dB and dC by columns that are one in a single place.
  template <bool GUARD>
  __device__ __forceinline__ void add_channels(int i0, int count, const float (&draw)[2][4], const float (&dB)[2][NS],
                                               const float (&dC)[2][NS]) {
    float *sums = o.sums + (((long long)(blockIdx.x % p.tiles) * p.batch + b) * p.L * p.K + k) * QP;
    const unsigned row = p.K * QP * 4;
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
      const unsigned at = (q * 8 + 2 * t) * 4;
      if (!GUARD || i0 < count) store_at(sums, (unsigned)pos[i0] * row + at, d[0], d[1]);
      const int second = i0 + 1 < S ? i0 + 1 : i0;
      if (second > i0 && (!GUARD || second < count)) store_at(sums, (unsigned)pos[second] * row + at, d[2], d[3]);
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

  __device__ __forceinline__ void walk() {
#pragma unroll 1
    for (int round = p.rounds - 1; round >= 0; round--) {
      const int first = (round * warps + warp) * WARP_TOKENS, t0 = first + g * S, count = min(max(p.L - t0, 0), S);
      const bool whole = first + WARP_TOKENS <= p.L;
      float through[4][NS], back[4][NS];
      if (whole) load<false>(t0, count), recompute<false>(count, through, back);
      else load<true>(t0, count), recompute<true>(count, through, back);
      enter<true>(carries, round == p.rounds - 1, round == 0, through, back, lane, warp, warps);
      if (k + 1 == p.K) {
        if (whole) walk_back<false, true>(count, back);
        else walk_back<true, true>(count, back);
      } else {
        if (whole) walk_back<false, false>(count, back);
        else walk_back<true, false>(count, back);
      }
    }
  }

  // Sums of a lane's values over the block's segments, for channels 4 t + c; in lanes of g = 0 of warp 0.
  __device__ __forceinline__ void finish_route(float *room) {
    const long long bke = ((long long)b * p.K + k) * p.E + channel;
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

  // dx starts as what the skip weights add, dy times the sum of D in units of ln 2; dD = sum of dy x.
  __device__ __forceinline__ void start(float *room) {
    const int q = threadIdx.x & 3;
    float skip[4] = {}, dD[4] = {};
    if (p.D && 4 * q < e_count)
      for (int r = 0; r < p.K; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) skip[c] += LOG2E * p.D[(long long)r * p.E + channel + 4 * q + c];
    const io_t *x = p.x + (long long)b * p.L * p.E + channel, *dy = o.dy + (long long)b * p.L * p.E + channel;
    const int stride = blockDim.x >> 2;
#pragma unroll 1
    for (int first = threadIdx.x >> 2; first < p.L; first += BATCH * stride) {
      quad_t us[BATCH], ds[BATCH];  // all on their way before the first is used
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        const unsigned at = (unsigned)min(first + i * stride, p.L - 1) * (p.E * (unsigned)sizeof(io_t)) + x_lane;
        us[i] = load_at<quad_t>(x, at), ds[i] = load_at<quad_t>(dy, at);
      }
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        const int l = first + i * stride;
        const float4 u = widen(us[i]), d = widen(ds[i]);
        if (l >= p.L) continue;
        dD[0] = fmaf(d.x, u.x, dD[0]), dD[1] = fmaf(d.y, u.y, dD[1]);
        dD[2] = fmaf(d.z, u.z, dD[2]), dD[3] = fmaf(d.w, u.w, dD[3]);
        dx[slot(l, p.rows_magic) * 4 + q] = make_float4(skip[0] * d.x, skip[1] * d.y, skip[2] * d.z, skip[3] * d.w);
      }
    }
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
      o.dD[(long long)b * p.E + channel + threadIdx.x] = v * p.scale;
    }
    __syncthreads();
  }
};

// Shared memory: dx (L, 16) floats with L rounded up to even, the weights where they are kept there, and room for the
// warps' sums, the larger of 16 (NS + 1) and 256 MB floats for each.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    projected_backward(const __grid_constant__ Scan p, const __grid_constant__ Out o) {
  extern __shared__ float4 dx[];
  __shared__ Carries<MAX_WARPS> carries;
  char *wide = (char *)(dx + (p.L + 1) / 2 * 8);
  float *room = (float *)(wide + WIDE_BYTES);
  Walker w(p, o, carries, dx, wide);
  w.start(room);
#pragma unroll 1
  for (int k = 0; k < p.K; k++) {
    w.k = k;
    w.start_route();
    w.walk();
    w.finish_route(room);
  }
}
