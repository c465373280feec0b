// Backward selective scan. A warp owns 8 channels x 16 states of one route: a lane holds 2 channels x 2 states. Chunks of
// 64 steps are taken from the last to the first: from the chunk's saved state a first sweep keeps the state at the entry of
// every 8 steps in shared memory; then each 8 steps are recomputed into registers and walked backwards with the adjoint
// g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}. dB and dC are summed over the warp's channels by tensor-core products with a
// selector matrix, over the block's warps in shared memory, and over blocks by the caller: no atomics anywhere.
// Defines: IO (0 float, 1 bfloat16, 2 half), PAIRS (whether io_pair may be used), SOFTPLUS, GATE (0, 1).
#include "common.cuh"

constexpr int WARPS = 4, NS = 16, TILE = 8, TILES = CHUNK / TILE, CHANNELS = WARPS * 8, SUM_STRIDE = 36, BATCH = 4;
constexpr bool SPLIT = IO == 0;  // float32 sums as high + low TF32 parts

struct BackwardOut {
  const io_t *u;       // the forward's x; p.x is dout, p.z the forward's gate
  const float *saved;  // (chunks + 1, B, K, N, E)
  const float *carry;  // (B, K, segments, N, E) adjoint entering each segment from behind; null: zero
  io_t *dx, *ddelta;   // (B, K, L, E), or null where the float versions are wanted
  float *dx_sum, *ddelta_sum;  // the same in float, added to from the second group of states on
  float *dB, *dC;      // (B, K, L, N), once for each tile, `per_tile` apart
  float *dA;           // (K, E, N) and
  float *dD, *dbias;   // (K, E), once for each batch entry and segment, `per_segment` apart
  long long per_tile, per_segment;
  int u_per_route;
};

struct Shared {
  float4 step[WARPS][CHUNK][4];        // per channel pair: dt0, dt1, dt0 u0, dt1 u1
  float2 dy[WARPS][CHUNK][4];
  float4 state[WARPS][TILES][32];      // entry state of each 8 steps, per lane
  float bc[CHUNK][8][4];               // per pair of states: B0, B1, C0, C1
  float sums[2][WARPS][TILE][2][16];   // [dB/dC exchange] per warp
  float4 cross[WARPS][TILE][SUM_STRIDE];
  long long at[CHUNK];  // position x E
  int pos[CHUNK];       // -1 beyond the segment's end
};

__device__ __forceinline__ void select_sum(float4 &d, const unsigned (&q)[4], float b0, float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
      : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
__device__ __forceinline__ float low_part(float v) {
  return v - __uint_as_float(__float_as_uint(v) & 0xffffe000u);
}
// Two neighbouring channels, as they are in memory.
#if PAIRS
typedef io_pair raw_t;
__device__ __forceinline__ raw_t load_pair(const io_t *p, bool) { return *(const io_pair *)p; }
__device__ __forceinline__ float2 widen(raw_t v) { return unpack(v); }
#else
struct raw_t {
  io_t v[2];
};
__device__ __forceinline__ raw_t load_pair(const io_t *p, bool second) { return {{p[0], p[second]}}; }
__device__ __forceinline__ float2 widen(raw_t r) { return make_float2(to_float(r.v[0]), to_float(r.v[1])); }
#endif

// Two channels' gradients: rounded into `out`, or where that is null kept or added up in `sum`.
__device__ __forceinline__ void put_pair(io_t *out, float *sum, long long at, const float (&v)[2], bool ok0, bool ok1,
                                         int add) {
  if (PAIRS && out) {
    if (ok0) *(io_pair *)(out + at) = pack(make_float2(v[0], v[1]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (!(i ? ok1 : ok0)) continue;
    if (out) out[at + i] = from_float<io_t>(v[i]);
    else sum[at + i] = add ? sum[at + i] + v[i] : v[i];
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) scan_backward(const Scan p, const BackwardOut o) {
  extern __shared__ __align__(16) char raw_shared[];
  Shared &sm = *reinterpret_cast<Shared *>(raw_shared);
  const Where w(p);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int cp = lane & 3, tr = lane >> 2, s0 = tr * 2;
  const int e = w.tile * CHANNELS + warp * 8 + cp * 2;
  const bool ok0 = e < p.E, ok1 = e + 1 < p.E;
  const long long bk = (long long)w.b * p.K + w.k, slot = bk * p.segments + w.segment;
  const long long row = row_of(p, w), dy_row = x_row_of(p, w);
  const long long u_row = (o.u_per_route ? bk : (long long)w.b) * p.L;
  const int len = p.lengths[w.k], first = w.segment * p.segment, stop = min(first + p.segment, len);
  const int *route = p.route + (long long)w.k * p.M;
  const long long ke = (long long)w.k * p.E + e;
  // Lanes beyond the channels read the first ones: their decay is 1 and their dy 0, and they write nothing.
  const int at_e = ok0 ? e : 0;
  const io_t *pu = o.u + u_row * p.E + at_e, *pd = p.delta + row * p.E + at_e, *py = p.x + dy_row * p.E + at_e;
  const io_t *pz = GATE ? p.z + dy_row * p.E + at_e : nullptr;

  float a2[2][2], dA[2][2] = {}, g[2][2];  // [channel][state]
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int n = s0 + j;
      a2[i][j] = load_A(p, w.k, n, e + i);
      g[i][j] = o.carry && e + i < p.E && n < p.Ns ? o.carry[state_at(p, slot, n, e + i)] : 0.f;
    }
  const float2 bias = p.bias ? make_float2(ok0 ? p.bias[ke] : 0.f, ok1 ? p.bias[ke + 1] : 0.f) : make_float2(0.f, 0.f);
  const float2 skip =
      p.D && p.n0 == 0 ? make_float2(ok0 ? p.D[ke] : 0.f, ok1 ? p.D[ke + 1] : 0.f) : make_float2(0.f, 0.f);
  float2 sum_D = make_float2(0.f, 0.f), sum_bias = make_float2(0.f, 0.f);
  // Rows 0-7 of the selector add the first operand over its four channel pairs, rows 8-15 the second. Opaque to the
  // compiler, which would otherwise rebuild the constants before every product.
  unsigned q[4] = {0x3f800000u, 0u, 0u, 0x3f800000u};
  asm volatile("" : "+r"(q[0]), "+r"(q[1]), "+r"(q[2]), "+r"(q[3]));

  const int chunks = first < stop ? (stop - first + CHUNK - 1) / CHUNK : 0;
#pragma unroll 1
  for (int c = chunks - 1; c >= 0; c--) {
    const int base = first + c * CHUNK, steps = min(CHUNK, stop - base);
    __syncthreads();
    if (tid < CHUNK) {
      const int pos = tid < steps ? route[base + tid] : -1;
      sm.pos[tid] = pos;
      sm.at[tid] = (long long)max(pos, 0) * p.E;
    }
    __syncthreads();
    for (int i = tid; i < CHUNK * NS; i += WARPS * 32) {
      const int t = i / NS, n = i % NS, pos = sm.pos[t];
      const bool ok = pos >= 0 && n < p.Ns;
      const long long at = (row + pos) * p.N + p.n0 + n;
      sm.bc[t][n >> 1][n & 1] = ok ? to_float(p.Bm[at]) : 0.f;
      sm.bc[t][n >> 1][2 + (n & 1)] = ok ? to_float(p.Cm[at]) : 0.f;
    }
#pragma unroll 1
    for (int half = 0; half < TILES; half += BATCH) {  // all loads of a batch are on their way before the first is used
      raw_t u[BATCH], d[BATCH], dy[BATCH], gate[GATE ? BATCH : 1];
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        const int t = (half + i) * TILE + tr;
        const long long at = sm.at[t];
        u[i] = load_pair(pu + at, ok1), d[i] = load_pair(pd + at, ok1), dy[i] = load_pair(py + at, ok1);
        if (GATE) gate[i] = load_pair(pz + at, ok1);
      }
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        const int t = (half + i) * TILE + tr;
        const bool ok = sm.pos[t] >= 0;
        const float2 raw = widen(d[i]), x = widen(u[i]), y = widen(dy[i]);
        const float dt0 = ok ? step_size(raw.x + bias.x) : 0.f, dt1 = ok ? step_size(raw.y + bias.y) : 0.f;
        float2 g = make_float2(ok && ok0 ? y.x * p.scale : 0.f, ok && ok1 ? y.y * p.scale : 0.f);
        if (GATE) {
          const float2 z = widen(gate[i]);
          g.x *= silu(z.x), g.y *= silu(z.y);
        }
        sm.step[warp][t][cp] = make_float4(dt0, dt1, dt0 * x.x, dt1 * x.y);
        sm.dy[warp][t][cp] = g;
      }
    }
    float h[2][2];
    const long long entry = (long long)(base / CHUNK) * p.batch * p.K + bk;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        h[i][j] = e + i < p.E && s0 + j < p.Ns ? o.saved[state_at(p, entry, s0 + j, e + i)] : 0.f;
    __syncthreads();
    const int tiles = (steps + TILE - 1) / TILE;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
      sm.state[warp][tile][lane] = make_float4(h[0][0], h[0][1], h[1][0], h[1][1]);
      if (tile == tiles - 1) break;
#pragma unroll
      for (int j = 0; j < TILE; j++) {
        const int t = tile * TILE + j;
        const float4 st = sm.step[warp][t][cp];
        const float2 b = *(const float2 *)&sm.bc[t][tr][0];
        h[0][0] = fmaf(ex2(st.x * a2[0][0]), h[0][0], st.z * b.x);
        h[0][1] = fmaf(ex2(st.x * a2[0][1]), h[0][1], st.z * b.y);
        h[1][0] = fmaf(ex2(st.y * a2[1][0]), h[1][0], st.w * b.x);
        h[1][1] = fmaf(ex2(st.y * a2[1][1]), h[1][1], st.w * b.y);
      }
    }
#pragma unroll 1
    for (int tile = tiles - 1; tile >= 0; tile--) {
      const int buffer = tile & 1;
      const float4 entry_state = sm.state[warp][tile][lane];
      const float h0[2][2] = {{entry_state.x, entry_state.y}, {entry_state.z, entry_state.w}};
      // This lane writes the gradients of step `tr` for its pair of channels; its inputs are on their way meanwhile.
      const bool own = sm.pos[tile * TILE + tr] >= 0;
      const long long own_at = sm.at[tile * TILE + tr];
      const raw_t own_u = load_pair(pu + own_at, ok1), own_d = load_pair(pd + own_at, ok1);
      float hs[TILE][2][2], decay[TILE][2][2];
#pragma unroll
      for (int t = 0; t < TILE; t++) {
        const float4 st = sm.step[warp][tile * TILE + t][cp];
        const float2 b = *(const float2 *)&sm.bc[tile * TILE + t][tr][0];
        const float dt[2] = {st.x, st.y}, du[2] = {st.z, st.w}, bb[2] = {b.x, b.y};
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int j = 0; j < 2; j++) {
            decay[t][i][j] = ex2(dt[i] * a2[i][j]);
            hs[t][i][j] = fmaf(decay[t][i][j], t ? hs[t ? t - 1 : 0][i][j] : h0[i][j], du[i] * bb[j]);
          }
      }
#pragma unroll
      for (int t = TILE - 1; t >= 0; t--) {
        const float4 st = sm.step[warp][tile * TILE + t][cp], bc = *(const float4 *)sm.bc[tile * TILE + t][tr];
        const float2 dy2 = sm.dy[warp][tile * TILE + t][cp];
        const float dt[2] = {st.x, st.y}, du[2] = {st.z, st.w}, dy[2] = {dy2.x, dy2.y};
        const float bb[2] = {bc.x, bc.y}, cc[2] = {bc.z, bc.w};
        float d_in[2], d_exp[2], gt[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int j = 0; j < 2; j++) {
            gt[i][j] = fmaf(cc[j], dy[i], g[i][j]);
            d_in[i] = j ? fmaf(gt[i][j], bb[j], d_in[i]) : gt[i][j] * bb[j];
            g[i][j] = decay[t][i][j] * gt[i][j];
            const float de = g[i][j] * (t ? hs[t ? t - 1 : 0][i][j] : h0[i][j]);
            d_exp[i] = j ? fmaf(de, a2[i][j], d_exp[i]) : de * a2[i][j];
            dA[i][j] = fmaf(de, dt[i], dA[i][j]);
          }
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float vc = fmaf(dy[0], hs[t][0][j], dy[1] * hs[t][1][j]);
          const float vb = fmaf(du[0], gt[0][j], du[1] * gt[1][j]);
          float4 f = make_float4(0.f, 0.f, 0.f, 0.f);
          select_sum(f, q, vc, vb);
          if (SPLIT) select_sum(f, q, low_part(vc), low_part(vb));
          // Columns 2 cp and 2 cp + 1 of the product are the state groups of the same numbers.
          if (tr == t) *(float4 *)&sm.sums[buffer][warp][t][j][cp * 4] = f;
        }
        sm.cross[warp][t][lane] = make_float4(d_in[0], d_in[1], d_exp[0], d_exp[1]);
      }
      __syncwarp();
      float4 v = sm.cross[warp][tr][cp];
#pragma unroll
      for (int z = 1; z < 8; z++) {
        const float4 x = sm.cross[warp][tr][z * 4 + cp];
        v.x += x.x, v.y += x.y, v.z += x.z, v.w += x.w;
      }
      if (own) {
        const float2 u = widen(own_u), d = widen(own_d);
        const float4 st = sm.step[warp][tile * TILE + tr][cp];
        const float2 dy = sm.dy[warp][tile * TILE + tr][cp];
        const float gx[2] = {fmaf(v.x, st.x, skip.x * dy.x), fmaf(v.y, st.y, skip.y * dy.y)};
        float gd[2] = {fmaf(v.x, u.x, v.z * LN2), fmaf(v.y, u.y, v.w * LN2)};
        if (SOFTPLUS) gd[0] *= sigmoid(d.x + bias.x), gd[1] *= sigmoid(d.y + bias.y);
        sum_D.x = fmaf(dy.x, u.x, sum_D.x), sum_D.y = fmaf(dy.y, u.y, sum_D.y);
        sum_bias.x += gd[0], sum_bias.y += gd[1];
        const long long at = row * p.E + own_at + e;
        put_pair(o.dx, o.dx_sum, at, gx, ok0, ok1, p.n0);
        put_pair(o.ddelta, o.ddelta_sum, at, gd, ok0, ok1, p.n0);
      }
      __syncthreads();
      {  // the block's dB and dC of these 8 steps: one state per thread
        const int t = tid >> 4, n = tid & 15, pos = sm.pos[tile * TILE + t];
        if (pos >= 0 && n < p.Ns) {
          // f = {dC of group 2 cp, dC of 2 cp + 1, dB of 2 cp, dB of 2 cp + 1}
          const int at = (n >> 2) * 4 + ((n >> 1) & 1);
          float dB = 0.f, dC = 0.f;
#pragma unroll
          for (int z = 0; z < WARPS; z++) {
            dC += sm.sums[buffer][z][t][n & 1][at];
            dB += sm.sums[buffer][z][t][n & 1][at + 2];
          }
          const long long out = w.tile * o.per_tile + (row + pos) * p.N + p.n0 + n;
          o.dB[out] = dB;
          o.dC[out] = dC;
        }
      }
    }
  }
  const long long part = ((long long)w.b * p.segments + w.segment) * o.per_segment;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++)
      if (e + i < p.E && s0 + j < p.Ns)
        o.dA[part + (ke + i) * p.N + p.n0 + s0 + j] = dA[i][j];
#pragma unroll
  for (int m = 4; m < 32; m <<= 1) {
    sum_D.x += __shfl_xor_sync(~0u, sum_D.x, m), sum_D.y += __shfl_xor_sync(~0u, sum_D.y, m);
    sum_bias.x += __shfl_xor_sync(~0u, sum_bias.x, m), sum_bias.y += __shfl_xor_sync(~0u, sum_bias.y, m);
  }
  if (tr == 0) {
    const long long at = part + ke;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (!(i ? ok1 : ok0)) continue;
      if (p.n0 == 0) o.dD[at + i] = i ? sum_D.y : sum_D.x;
      const float b = i ? sum_bias.y : sum_bias.x;
      o.dbias[at + i] = p.n0 ? o.dbias[at + i] + b : b;
    }
  }
}
