// Backward selective scan. A warp owns 16 channels of one route, a lane 2 channels x NL of the NS states; lanes are
// (half, states / NL, pair of channels). Chunks of 16 steps are taken from the last to the first: from the chunk's saved
// state a first sweep leaves the state at the entry of every 4 steps in shared memory; then each 4 steps are recomputed
// into registers and walked backwards with the adjoint g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}. dB and dC are summed over
// the warp's channels by tensor-core products with a selector matrix, over the block's warps in shared memory, and over
// blocks by the caller: no atomics anywhere.
// Defines: IO (0 float, 1 bfloat16, 2 half), NS (4, 8, 16), PAIRS (whether io_pair may be used), MAIL (1: all rows are
// multiples of 16 bytes, so that they can be copied in such pieces; needs PAIRS), VEC, SOFTPLUS, GATE (0, 1), FLOAT_DX (1 where
// x is shared by routes, whose gradients are still to be added up), GROUPED (1 with more than 16 states: gradients of x and
// delta are added up in floats).
#include "common.cuh"

constexpr int WARPS = 4, NL = NS / 4, SUB = 4, SUBS = CHUNK / SUB, CHANNELS = WARPS * 16, CROSS = 36, SUMS = 34;
constexpr int PIECES = sizeof(io_t);             // of 16 bytes in a row of a warp's channels
constexpr int SENDS = MAIL ? PIECES / 2 : SUBS;  // a lane's copies of each stream for a chunk
constexpr bool SPLIT = IO != 1;  // sums as high + low TF32 parts, which have more digits than float16
// Where they are not split, tensor cores cut the digits that TF32 lacks: 2^-11 / m of a number with mantissa m, which is
// 0.72 x 2^-11 on average, and given back here.
constexpr float UNCUT = SPLIT ? 1.f : 1.f + 0.7213f / 2048;

struct BackwardOut {
  Stream u;            // the forward's x; p.x is dout, p.z the forward's gate
  const float *saved;  // (chunks + 1, B, K, N, E)
  const float *carry;  // (B, K, segments, N, E) adjoint entering each segment from behind; null: zero
  void *dx, *ddelta;   // (B, K, L, E) of dx_t, ddelta_t
  float *dB, *dC;      // (B, K, L, N), rows `bc_row` apart, once for each tile, `per_tile` apart
  float *dA;           // (K, E, N) and
  float *dD, *dbias;   // (K, E), once for each batch entry and segment, `per_segment` apart
  long long per_tile, per_segment, bc_row;
};

#if FLOAT_DX || GROUPED
typedef float dx_t;
#else
typedef io_t dx_t;
#endif
#if GROUPED
typedef float ddelta_t;
#else
typedef io_t ddelta_t;
#endif

// Two neighbouring channels, as they are in memory.
#if PAIRS
typedef io_pair raw_t;
__device__ __forceinline__ float2 widen(raw_t v) { return unpack(v); }
#else
struct raw_t {
  io_t v[2];
};
__device__ __forceinline__ float2 widen(raw_t r) { return make_float2(to_float(r.v[0]), to_float(r.v[1])); }
#endif


struct WarpShared {
  float4 step[CHUNK][8];       // per pair of channels: sizes s0, s1 in units of ln 2, s0 u0, s1 u1
  float4 cross[SUB][CROSS];
  float2 dy[CHUNK][8];
  float2 entry[SUBS][NL][32];  // state before every 4 steps, per lane
  float2 next_entry[NL][32];   // of the next chunk; MAIL: per state and pair
  raw_t next[3 + GATE][CHUNK][8];  // the next chunk's u, delta, dy and gate
  raw_t u[CHUNK][8];
  float bias[8][2], skip[8][2], scale[8][2];
  const io_t *rows[4][MAIL ? PIECES : 1];  // of u, delta, dy and gate: where this lane's part of the grid's first row is
};
struct Shared {
  WarpShared warp[WARPS];
  float bc[2][CHUNK][2][NS];        // ln 2 B, C
  float4 sums[2][WARPS][NL][SUMS];  // 8 steps' dC and dB per warp
  int pos[2][CHUNK];                // -1 beyond the segment's end
  const io_t *bc_rows[2];           // of B and C
  const float *saved;               // state before the first chunk
};
#ifdef SHARED_BYTES
static_assert(sizeof(Shared) == SHARED_BYTES, "cuda.py counts the shared memory too");
#endif

// Two neighbouring values on their way to shared memory; `second` where there is a second one.
template <typename P, typename T> __device__ __forceinline__ void send_pair(P *to, const T *from, bool second) {
#if PAIRS
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
               "n"(sizeof(P)));
#else
  T *v = (T *)to;
  v[0] = from[0], v[1] = from[second];
#endif
}
// 16 bytes on their way to shared memory, zeros where they are not `in` the row.
__device__ __forceinline__ void send_piece(void *to, const void *from, bool in) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
               "r"(in ? 16 : 0) : "memory");
}
__device__ __forceinline__ void wait_for_pairs() {
#if PAIRS
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
// Adds v0 over the four lanes that hold a state's channels into d's rows 0-7, row = lane / 4, and v1 into rows 8-15; into
// the column whose number is the lane / 4 that has q = 1.
__device__ __forceinline__ void select_sum(float4 &d, float v0, float v1, unsigned q) {
  asm volatile(
      "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
      : "r"(__float_as_uint(v0)), "r"(__float_as_uint(v1)), "r"(q));
}
__device__ __forceinline__ float low_part(float v) { return v - __uint_as_float(__float_as_uint(v) & 0xffffe000u); }

__device__ __forceinline__ void put_pair(io_pair *to, float v0, float v1) { *to = pack(make_float2(v0, v1)); }
// Two channels' gradients in row `pos`, added to what another group of states left there.
template <typename T>
__device__ __forceinline__ void put_pair(T *to, int pos, int E, float v0, float v1, const bool (&ok)[2], bool add) {
  to = at_row(to, pos, E * (int)sizeof(T));
  if (PAIRS && sizeof(T) == sizeof(io_t) && !add) {
    if (ok[0]) put_pair((io_pair *)to, v0, v1);
    return;
  }
  if (ok[0]) to[0] = from_float<T>(v0 + (add ? to_float(to[0]) : 0.f));
  if (ok[1]) to[1] = from_float<T>(v1 + (add ? to_float(to[1]) : 0.f));
}
// d softplus(x) / dx = 1 - exp(-softplus(x)), from the step size in units of ln 2; three terms where it is small.
__device__ __forceinline__ float slope(float s) {
  const float x = s * LN2;
  return x < 0.015625f ? x * fmaf(x, fmaf(x, 0.16666667f, -0.5f), 1.f) : 1.f - ex2(-s);
}

struct Backward {
  const Scan &p;
  const BackwardOut &o;
  Shared &sm;
  WarpShared &mine;
  int tid, lane, warp, tile, segment, b, k;
  int first, stop;
  const int *route;
  // As owner of 2 channels x NL states.
  int e, n0;
  bool ok[2];
  float A[2][NL], dA[2][NL], g[2][NL];
  float4 d[NL];
  // As handler of a step and a pair of channels.
  int pair, pair_e, next_pos[SENDS];
  bool pair_ok[2], piece_ok;
  long long at_pair;  // the first channel that this lane copies, in bytes of io_t
  dx_t *dx;
  ddelta_t *ddelta;
  float sum_D[2], sum_bias[2];
  // As loader of 4 values of B or C.
  int bc_n;
  io_t bc[NS / 4];

  __device__ __forceinline__ Backward(const Scan &p, const BackwardOut &o, Shared &sm)
      : p(p), o(o), sm(sm), mine(sm.warp[threadIdx.x >> 5]), tid(threadIdx.x), lane(tid & 31), warp(tid >> 5), d{} {
    unsigned id = blockIdx.x;
    tile = id % p.tiles, id /= p.tiles;
    segment = id % p.segments, id /= p.segments;
    b = id % p.batch, k = id / p.batch;
    const Span span(p, k, segment);
    first = span.first, stop = span.stop, route = p.route + (long long)k * p.M;
    const int base = tile * CHANNELS + warp * 16;
    e = base + (lane >> 4) * 8 + (lane & 3) * 2, n0 = (lane >> 2 & 3) * NL;
    const long long slot = ((long long)b * p.K + k) * p.segments + segment;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      ok[i] = e + i < p.E;
#pragma unroll
      for (int j = 0; j < NL; j++) {
        A[i][j] = load_A(p, k, n0 + j, e + i), dA[i][j] = 0.f;
        g[i][j] = o.carry && ok[i] && n0 + j < p.Ns ? o.carry[state_at(p, slot, n0 + j, e + i)] : 0.f;
      }
    }
    pair = lane & 7, pair_e = base + pair * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      pair_ok[i] = pair_e + i < p.E;
      const long long ke = (long long)k * p.E + pair_e + i;
      if (lane < 8) {
        mine.bias[pair][i] = p.bias && pair_ok[i] ? p.bias[ke] * LOG2E : 0.f;
        mine.skip[pair][i] = p.D && p.n0 == 0 && pair_ok[i] ? p.D[ke] : 0.f;
        mine.scale[pair][i] = pair_ok[i] ? p.scale : 0.f;
      }
      sum_D[i] = sum_bias[i] = 0.f;
    }
    // Pairs beyond the channels read the first one: their dy is 0, and they write nothing.
    const int from = MAIL ? base + lane % PIECES * (16 / (int)sizeof(io_t)) : pair_e;
    piece_ok = from < p.E;
    at_pair = (piece_ok ? from : 0) * (long long)sizeof(io_t);
    // Addresses that cost many instructions wait in shared memory.
    if (lane < (MAIL ? PIECES : 1)) {
      const long long ahead_by = MAIL ? at_pair : 0;
      mine.rows[0][lane] = ahead(row_of(o.u, b, k), ahead_by), mine.rows[1][lane] = ahead(row_of(p.delta, b, k), ahead_by);
      mine.rows[2][lane] = ahead(row_of(p.x, b, k), ahead_by);
      if (GATE) mine.rows[3][lane] = ahead(row_of(p.z, b, k), ahead_by);
    }
    if (tid == 0) {
      sm.bc_rows[0] = row_of(p.Bm, b, k) + p.n0, sm.bc_rows[1] = row_of(p.Cm, b, k) + p.n0;
      sm.saved = o.saved + state_at(p, (long long)b * p.K + k, 0, 0);
    }
    __syncthreads();
    const long long first_row = ((long long)b * p.K + k) * p.L * p.E + pair_e;
    dx = (dx_t *)o.dx + first_row, ddelta = (ddelta_t *)o.ddelta + first_row;
    bc_n = (tid & 3) * (NS / 4);
  }

  // Steps beyond the end repeat the last one, with a size and a gradient of zero.
  __device__ __forceinline__ int position(int base, int t) const { return route[min(base + t, stop - 1)]; }
  // Two steps to stage B and C: on their way, and into shared memory.
  __device__ __forceinline__ void fetch_bc(int base) {
    const io_t *at = at_row(sm.bc_rows[tid >> 2 & 1], position(base, tid >> 3), tid & 4 ? p.Cm.row : p.Bm.row) + bc_n;
#if VEC
    struct alignas(sizeof(bc)) Quad { io_t v[NS / 4]; };
    *(Quad *)bc = *(const Quad *)at;
#endif
#pragma unroll
    for (int i = 0; i < NS / 4; i++) {
      if (!VEC) bc[i] = bc_n + i < p.Ns ? at[i] : from_float<io_t>(0.f);
    }
  }
  __device__ __forceinline__ void put_bc(int base, int buffer) {
    float *to = &sm.bc[buffer][tid >> 3][tid >> 2 & 1][bc_n];
#pragma unroll
    for (int i = 0; i < NS / 4; i++) to[i] = to_float(bc[i]) * (tid & 4 ? 1.f : LN2);
    if (tid < CHUNK) sm.pos[buffer][tid] = base + tid < stop ? position(base, tid) : -1;
  }
  // The step of a chunk that this lane's i-th copies are of.
  __device__ __forceinline__ int step_of(int i) const {
    return MAIL ? (i * 32 + lane) / PIECES : i * SUB + (lane >> 3);
  }
  // The inputs of the chunk at `base` and the state before it, on their way.
  __device__ __forceinline__ void send(int base) {
#pragma unroll
    for (int i = 0; i < SENDS; i++) {
      const int t = step_of(i), pos = next_pos[i];
      raw_t *to = &mine.next[0][t][MAIL ? lane % PIECES * (16 / (int)sizeof(raw_t)) : pair];
      send_input(to, 0, pos, o.u.row);
      send_input(to + CHUNK * 8, 1, pos, p.delta.row);
      send_input(to + 2 * CHUNK * 8, 2, pos, p.x.row);
      if (GATE) send_input(to + 3 * GATE * CHUNK * 8, 3, pos, p.z.row);
    }
    const float *entry = sm.saved + (long long)(base / CHUNK) * ((long long)p.batch * p.K * p.N * p.E);
    if (MAIL) return send_states(entry);
    const float *at = entry + n0 * p.E + (ok[0] ? e : 0);
#pragma unroll
    for (int j = 0; j < NL; j++, at += p.E) {
      if (VEC || n0 + j < p.Ns) send_pair(&mine.next_entry[j][lane], at, ok[1]);
      else mine.next_entry[j][lane] = make_float2(0.f, 0.f);
    }
  }
  __device__ __forceinline__ void send_input(raw_t *to, int stream, int pos, int row) const {
    if (MAIL) send_piece(to, at_row(mine.rows[stream][lane % PIECES], pos, row), piece_ok);
    else send_pair(to, ahead(mine.rows[stream][0], (long long)pos * row + at_pair), pair_ok[1]);
  }
  __device__ __forceinline__ void send_states(const float *entry) {
    const int n = lane >> 2, channel = tile * CHANNELS + warp * 16 + (lane & 3) * 4;
    const float *at = entry + (channel < p.E ? channel : 0);
#pragma unroll
    for (int i = 0; i < NS; i += 8) {
      const bool in = i + n < p.Ns && channel < p.E;
      if (i + n < NS) send_piece((float *)mine.next_entry + (i + n) * 16 + (lane & 3) * 4, at + (in ? i + n : 0) * p.E, in);
    }
  }
  __device__ __forceinline__ float2 next_entry(int j) const {
    return MAIL ? *((const float2 *)mine.next_entry + (n0 + j) * 8 + (lane >> 4) * 4 + (lane & 3)) : mine.next_entry[j][lane];
  }
  __device__ __forceinline__ void look_ahead(int base) {
#pragma unroll
    for (int i = 0; i < SENDS; i++) next_pos[i] = position(base, step_of(i));
  }
  // Step sizes, inputs and incoming gradients of a chunk for the warp's channels.
  __device__ __forceinline__ void stage(int base) {
    const float2 bias = *(const float2 *)mine.bias[pair], scale = *(const float2 *)mine.scale[pair];
#pragma unroll
    for (int i = 0; i < SUBS; i++) {
      const int t = i * SUB + (lane >> 3);
      const float in = base + t < stop ? 1.f : 0.f;
      const raw_t *from = &mine.next[0][t][pair], u = from[0];
      const float2 x = widen(u), raw = widen(from[CHUNK * 8]);
      float2 y = widen(from[2 * CHUNK * 8]);
      const float s0 = step_size(raw.x, bias.x) * in, s1 = step_size(raw.y, bias.y) * in;
      y.x *= scale.x * in, y.y *= scale.y * in;
      if (GATE) {
        const float2 gate = widen(from[3 * GATE * CHUNK * 8]);
        y.x *= silu(gate.x), y.y *= silu(gate.y);
      }
      mine.step[t][pair] = make_float4(s0, s1, s0 * x.x, s1 * x.y);
      mine.dy[t][pair] = y;
      mine.u[t][pair] = u;
    }
  }
  __device__ __forceinline__ const float4 &step(int t) const { return mine.step[t][(lane >> 4) * 4 + (lane & 3)]; }
  __device__ __forceinline__ const float2 &dy(int t) const { return mine.dy[t][(lane >> 4) * 4 + (lane & 3)]; }
  __device__ __forceinline__ void states(int buffer, int which, int t, float (&v)[NL]) const {
    struct alignas(4 * NL) Pack { float v[NL]; };
    const Pack at = *(const Pack *)&sm.bc[buffer][t][which][n0];
#pragma unroll
    for (int j = 0; j < NL; j++) v[j] = at.v[j];
  }
  // States at the entry of every 4 of `live` steps, from the chunk's saved state.
  __device__ __forceinline__ void sweep(const float2 (&start)[NL], int live, int buffer) {
    float h[2][NL];
#pragma unroll
    for (int j = 0; j < NL; j++) h[0][j] = start[j].x, h[1][j] = start[j].y;
#pragma unroll
    for (int sub = 0; sub < SUBS; sub++) {
#pragma unroll
      for (int j = 0; j < NL; j++) mine.entry[sub][j][lane] = make_float2(h[0][j], h[1][j]);
      if ((sub + 1) * SUB >= live) break;
#pragma unroll
      for (int i = 0; i < SUB; i++) {
        const float4 st = step(sub * SUB + i);
        float B[NL];
        states(buffer, 0, sub * SUB + i, B);
#pragma unroll
        for (int j = 0; j < NL; j++) {
          h[0][j] = fmaf(ex2(st.x * A[0][j]), h[0][j], st.z * B[j]);
          h[1][j] = fmaf(ex2(st.y * A[1][j]), h[1][j], st.w * B[j]);
        }
      }
    }
  }
  // Four steps from `t0`: states and decays again, then backwards.
  __device__ __forceinline__ void reverse(int sub, int buffer) {
    const int t0 = sub * SUB;
    float h[SUB + 1][2][NL], decay[SUB][2][NL];
#pragma unroll
    for (int j = 0; j < NL; j++) {
      const float2 v = mine.entry[sub][j][lane];
      h[0][0][j] = v.x, h[0][1][j] = v.y;
    }
#pragma unroll
    for (int t = 0; t < SUB; t++) {
      const float4 st = step(t0 + t);
      const float s[2] = {st.x, st.y}, u[2] = {st.z, st.w};
      float B[NL];
      states(buffer, 0, t0 + t, B);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < NL; j++) {
          decay[t][i][j] = ex2(s[i] * A[i][j]);
          h[t + 1][i][j] = fmaf(decay[t][i][j], h[t][i][j], u[i] * B[j]);
        }
    }
    float4 S[SUB];
#pragma unroll
    for (int t = SUB - 1; t >= 0; t--) {
      const float4 st = step(t0 + t);
      const float2 y2 = dy(t0 + t);
      const float s[2] = {st.x, st.y}, u[2] = {st.z, st.w}, y[2] = {y2.x, y2.y};
      float B[NL], C[NL], d_in[2], d_exp[2];
      states(buffer, 0, t0 + t, B), states(buffer, 1, t0 + t, C);
      const unsigned q = lane >> 2 == (t0 + t) % 8 ? 0x3f800000u : 0u;
#pragma unroll
      for (int j = 0; j < NL; j++) {
        float now[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          now[i] = fmaf(C[j], y[i], g[i][j]);
          d_in[i] = j ? fmaf(now[i], B[j], d_in[i]) : now[i] * B[j];
          g[i][j] = decay[t][i][j] * now[i];
          const float de = g[i][j] * h[t][i][j];
          d_exp[i] = j ? fmaf(de, A[i][j], d_exp[i]) : de * A[i][j];
          dA[i][j] = fmaf(de, s[i], dA[i][j]);
        }
        const float vc = fmaf(y[0], h[t + 1][0][j], y[1] * h[t + 1][1][j]), vb = fmaf(u[0], now[0], u[1] * now[1]);
        select_sum(d[j], vc, vb, q);
        if (SPLIT) select_sum(d[j], low_part(vc), low_part(vb), q);
      }
      S[t] = make_float4(d_in[0], d_in[1], d_exp[0], d_exp[1]);
    }
#pragma unroll
    for (int t = 0; t < SUB; t++) mine.cross[t][lane + (lane >> 4) * 4] = S[t];
  }
  // Gradients of x and delta at one of the four steps, for one pair of channels.
  __device__ __forceinline__ void finish(int sub, int buffer) {
    const int row = lane >> 3, t = sub * SUB + row, pos = sm.pos[buffer][t];
    const float4 *from = &mine.cross[row][(pair >> 2) * 20 + (pair & 3)];
    float4 v = from[0];
#pragma unroll
    for (int i = 1; i < 4; i++) {
      const float4 x = from[i * 4];
      v.x += x.x, v.y += x.y, v.z += x.z, v.w += x.w;
    }
    const float4 st = mine.step[t][pair];
    const float2 y = mine.dy[t][pair], u = widen(mine.u[t][pair]);
    if (pos < 0) return;
    float d0 = fmaf(v.x * LOG2E, u.x, v.z), d1 = fmaf(v.y * LOG2E, u.y, v.w);
    if (SOFTPLUS) d0 *= slope(st.x), d1 *= slope(st.y);
    sum_D[0] = fmaf(y.x, u.x, sum_D[0]), sum_D[1] = fmaf(y.y, u.y, sum_D[1]);
    sum_bias[0] += d0, sum_bias[1] += d1;
    const float2 skip = *(const float2 *)mine.skip[pair];
    const float d_u[2] = {fmaf(v.x, st.x, skip.x * y.x), fmaf(v.y, st.y, skip.y * y.y)};
    put_pair(dx, pos, p.E, d_u[0], d_u[1], pair_ok, GROUPED && p.n0);
    put_pair(ddelta, pos, p.E, d0, d1, pair_ok, GROUPED && p.n0);
  }
  // The block's dB and dC of 8 steps: one state per thread. The caller has a barrier in between.
  __device__ __forceinline__ void put_sums(int half) {
#pragma unroll
    for (int j = 0; j < NL; j++) {
      sm.sums[half][warp][j][lane] = d[j];
      d[j] = make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }
  __device__ __forceinline__ void write_sums(int half, int buffer) {
    const int at = tid - half * 64, pair_t = at / NS, n = at % NS;  // two neighbouring steps, one state
    if (at < 0 || pair_t >= 4 || n >= p.Ns) return;
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);  // dC of both steps, dB of both
#pragma unroll
    for (int w = 0; w < WARPS; w++)
#pragma unroll
      for (int i = 0; i < 2; i++) {  // the warp's halves of the channels
        const float4 x = sm.sums[half][w][n % NL][(i * 4 + n / NL) * 4 + pair_t];
        v.x += x.x, v.y += x.y, v.z += x.z, v.w += x.w;
      }
    const int bytes = (int)o.bc_row * (int)sizeof(float);
    const long long to = tile * o.per_tile + ((long long)b * p.K + k) * p.L * o.bc_row + p.n0 + n;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int pos = sm.pos[buffer][half * 8 + pair_t * 2 + i];
      if (pos < 0) return;
      *at_row(o.dC + to, pos, bytes) = (i ? v.y : v.x) * UNCUT;
      *at_row(o.dB + to, pos, bytes) = (i ? v.w : v.z) * (LN2 * UNCUT);
    }
  }
  __device__ __forceinline__ void run() {
    const int chunks = (stop - first + CHUNK - 1) / CHUNK;
    if (chunks > 0) {
      const int base = first + (chunks - 1) * CHUNK;
      look_ahead(base), send(base);
      fetch_bc(base), put_bc(base, (chunks - 1) & 1);
      if (chunks > 1) look_ahead(base - CHUNK);
    }
    __syncthreads();
#pragma unroll 1
    for (int c = chunks - 1; c >= 0; c--) {
      const int base = first + c * CHUNK, live = min(CHUNK, stop - base), buffer = c & 1;
      wait_for_pairs();
      __syncwarp();
      stage(base);
      float2 start[NL];
#pragma unroll
      for (int j = 0; j < NL; j++) start[j] = next_entry(j);
      __syncwarp();
      if (c > 0) send(base - CHUNK), fetch_bc(base - CHUNK);
      if (c > 1) look_ahead(base - 2 * CHUNK);
      sweep(start, live, buffer);
#pragma unroll 1  // unrolled, the loop outgrows the instruction cache: 548 against 478 us
      for (int sub = SUBS - 1; sub >= 0; sub--) {
        if (sub * SUB < live) {
          reverse(sub, buffer);
          __syncwarp();
          finish(sub, buffer);
          __syncwarp();
        }
        if (sub % 2) continue;
        const int half = sub / 2;
        put_sums(half);
        // Not earlier: until the barrier before this one, slow warps wrote the sums of the chunk that had this buffer.
        if (!half && c > 0) put_bc(base - CHUNK, buffer ^ 1);
        __syncthreads();
        write_sums(half, buffer);
      }
    }
    write_parameters();
  }
  __device__ __forceinline__ void write_parameters() {
    const long long part = ((long long)b * p.segments + segment) * o.per_segment;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < NL; j++)
        if (ok[i] && n0 + j < p.Ns) o.dA[part + ((long long)k * p.E + e + i) * p.N + p.n0 + n0 + j] = dA[i][j] * LN2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int m = 8; m < 32; m <<= 1) {
        sum_D[i] += __shfl_xor_sync(~0u, sum_D[i], m);
        sum_bias[i] += __shfl_xor_sync(~0u, sum_bias[i], m);
      }
      if (lane >= 8 || !pair_ok[i]) continue;
      const long long at = part + (long long)k * p.E + pair_e + i;
      if (p.n0 == 0) o.dD[at] = sum_D[i];
      o.dbias[at] = p.n0 ? o.dbias[at] + sum_bias[i] : sum_bias[i];
    }
  }
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, 3) scan_backward(const __grid_constant__ Scan p,
                                                                         const __grid_constant__ BackwardOut o) {
  extern __shared__ __align__(16) char raw_shared[];
  Backward(p, o, *reinterpret_cast<Shared *>(raw_shared)).run();
}
