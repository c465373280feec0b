// Shared by the projected scan's kernels: dtypes, matrix products of a warp, the walk along a route, and the step size.
// A warp owns 8 segments of S steps of a route and 16 channels of one image. Lane (g, t) = (lane / 4, lane % 4) walks
// segment g for the channels 4 t .. 4 t + 3. A product of 16 rows (two tokens of each segment) by 8 columns leaves its
// results in just these lanes, so step sizes, B and C come out of the tensor cores where they are used.
// Defines: IO (0 float, 1 bfloat16, 2 half), R (rank of the step sizes), NS (states: 1, 2, 4), S (steps of a segment);
// and for the walks RAGGED (whether a line may end within a segment), MANY (whether a block takes several images), SOLO
// (whether a block is one warp), and either nothing more, or FIXED with FULL (whether every lane has a segment in every
// round), ROUTES, STRIDES, SLOT_STRIDES (of every route), CHANNELS and PROJ_ROW (E and proj_l): every route then has code
// of its own, which is faster, but long, so that short walks would mostly wait for instructions.
#pragma once
#include "../../cuda/csrc/types.cuh"

#ifndef RAGGED
#define RAGGED 0
#endif
#ifndef FULL
#define FULL 0
#endif
#ifndef SOLO
#define SOLO 0
#endif

typedef Dtype<IO>::type io_t;

constexpr int TILE = 16;           // channels of a block
constexpr int Q = R + 2 * NS;      // a token's projections: R of the step sizes, then B, then C
constexpr int KB = (Q + 7) / 8;    // in blocks of 8, as matrix products take them
constexpr int BC0 = R / 8;         // the block in which B begins
constexpr int BCB = KB - BC0;
constexpr int WORDS = IO == 0 ? 2 : 1;  // registers a lane holds of 8 projections of one token
constexpr bool WIDE_WEIGHTS = KB > 2;   // kept in shared memory instead of registers
constexpr int WARP_TOKENS = 8 * S;
constexpr int MAX_ROUTES = 8, MOST_WARPS = 8;

// A route's lines are cut into segments of S steps, of which the last of a line may be shorter. Step i of segment q of
// line l is at position base + l s1 + (q S + i) s0, and likewise among the slots of the map in shared memory.
struct Route {
  int length, segments, total, s0, s1, base, m0, m1, m_base;
  float inverse_segments;
};

// Grid order: x (B, L, E); proj (B, K, L, 8 KB) with the given strides, zero or finite beyond Q; W (K, E, R),
// A (K, E, NS), D, bias (K, E). kept, a power of two: of so many rounds the links between warps are kept; warps drift
// apart by at most `apart` rounds, likewise a power of two.
struct Scan {
  const io_t *x, *proj;
  const float *W, *A, *D, *bias;
  long long proj_b, proj_k;
  int proj_l, L, batch, K, E, tiles, rounds, slots, segments, images, kept, apart;
  float scale;
  Route routes[MAX_ROUTES];
};

// Four neighbouring channels as they are in memory.
#if IO == 0
typedef float4 quad_t;
__device__ __forceinline__ float4 widen(quad_t v) { return v; }
__device__ __forceinline__ quad_t narrow(float4 v) { return v; }
#else
typedef uint2 quad_t;
#if IO == 1
typedef __nv_bfloat162 pair_t;
__device__ __forceinline__ float2 unpack(pair_t v) { return __bfloat1622float2(v); }
__device__ __forceinline__ pair_t pack(float a, float b) { return __floats2bfloat162_rn(a, b); }
#else
typedef __half2 pair_t;
__device__ __forceinline__ float2 unpack(pair_t v) { return __half22float2(v); }
__device__ __forceinline__ pair_t pack(float a, float b) { return __floats2half2_rn(a, b); }
#endif
__device__ __forceinline__ unsigned bits(pair_t v) { return *reinterpret_cast<unsigned *>(&v); }
#if IO == 1
__device__ __forceinline__ float4 widen(quad_t v) {  // one instruction a channel
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                     __uint_as_float(v.y & 0xffff0000u));
}
#else
__device__ __forceinline__ float4 widen(quad_t v) {
  const float2 a = unpack(*reinterpret_cast<pair_t *>(&v.x)), b = unpack(*reinterpret_cast<pair_t *>(&v.y));
  return make_float4(a.x, a.y, b.x, b.y);
}
#endif
__device__ __forceinline__ quad_t narrow(float4 v) { return make_uint2(bits(pack(v.x, v.y)), bits(pack(v.z, v.w))); }
#endif

// e -> log2(1 + e) / e on [0, 1]: minimax fits, relative error 3e-8 and 6e-5. A logarithm would cost a third special
// function a step and lose the digits of small steps.
__device__ __forceinline__ float log2_1p_over(float e) {
#if IO == 0
  float p = 0.00754916574805975f;
  p = fmaf(p, e, -0.042566996067762375f), p = fmaf(p, e, 0.11285600996017456f);
  p = fmaf(p, e, -0.197118878364563f), p = fmaf(p, e, 0.27564138174057007f);
  p = fmaf(p, e, -0.35840845108032227f), p = fmaf(p, e, 0.48069295287132263f);
  return fmaf(fmaf(p, e, -0.7213401794433594f), e, 1.4426950216293335f);
#else
  float p = fmaf(0.05965143442153931f, e, -0.22711922228336334f);
  p = fmaf(p, e, 0.4418986737728119f), p = fmaf(p, e, -0.7169873714447021f);
  return fmaf(p, e, 1.4426132440567017f);
#endif
}
// softplus in units of ln 2, of an argument in the same units.
__device__ __forceinline__ float softplus2(float v) {
  const float e = ex2(-fabsf(v));
  return fmaf(e, log2_1p_over(e), fmaxf(v, 0.f));
}

__device__ __forceinline__ float high_part(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }

// d = a b + c; c apart from d, so that a constant c costs no copies.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const float (&a)[4], float b0, float b1, const float *c) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
#if IO == 2
#define HALF_TYPES "f16.f16"
#else
#define HALF_TYPES "bf16.bf16"
#endif
__device__ __forceinline__ void mma_k8(float (&d)[4], unsigned a0, unsigned a1, unsigned b, const float *c) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32." HALF_TYPES ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// What a lane holds of one token's projections.
struct Row {
  unsigned w[KB * WORDS];
};
// Read-only loads, kept in their order: the compiler would otherwise wait for some before it asks for the rest.
template <typename T> __device__ __forceinline__ T load_at(const void *base, unsigned bytes) {
  const char *at = static_cast<const char *>(base) + bytes;
  T v;
  if constexpr (sizeof(T) == 4) {
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(reinterpret_cast<unsigned &>(v)) : "l"(at));
  } else if constexpr (sizeof(T) == 8) {
    uint2 w;
    asm volatile("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(at));
    v = *reinterpret_cast<T *>(&w);
  } else {
    uint4 w;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(at));
    v = *reinterpret_cast<T *>(&w);
  }
  return v;
}
__device__ __forceinline__ Row load_row(const char *at) {
  Row r;
#pragma unroll
  for (int w = 0; w < KB * WORDS; w++) r.w[w] = load_at<unsigned>(at, w * 16);
  return r;
}
// Step sizes' weights in units of ln 2 as column operands, each the sum of a high and a low part: 2 sets of 8 columns,
// column n of set c being channel 4 (n / 2) + 2 c + n % 2, so that a lane's results are its own four channels.
struct Weights {
#if IO == 0
  typedef uint4 part_t;  // high of two rows, then low
#else
  typedef uint2 part_t;  // high and low of a pair of rows
#endif
  part_t w[WIDE_WEIGHTS ? 1 : KB][2];
  part_t *shared;

  __device__ __forceinline__ static part_t part(const float *W, int e_count, int b, int c, int g, int t) {
    const int channel = 4 * (g >> 1) + 2 * c + (g & 1);
    float v[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int q = IO == 0 ? b * 8 + i * 4 + t : b * 8 + 2 * t + i;
      v[i] = q < R && channel < e_count ? W[channel * R + q] * LOG2E : 0.f;
    }
#if IO == 0
    const float h0 = high_part(v[0]), h1 = high_part(v[1]);
    return make_uint4(__float_as_uint(h0), __float_as_uint(h1), __float_as_uint(v[0] - h0), __float_as_uint(v[1] - h1));
#else
    const pair_t high = pack(v[0], v[1]);
    const float2 h = unpack(high);
    return make_uint2(bits(high), bits(pack(v[0] - h.x, v[1] - h.y)));
#endif
  }
  // W: (E, R) at the tile's first channel. Where shared memory is used, the caller waits for the block afterwards.
  __device__ __forceinline__ void load(const float *W, int e_count, int g, int t, bool writes) {
#pragma unroll
    for (int b = 0; b < KB; b++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        if (!WIDE_WEIGHTS) w[b][c] = part(W, e_count, b, c, g, t);
        else if (writes) shared[(b * 2 + c) * 32 + g * 4 + t] = part(W, e_count, b, c, g, t);
      }
  }
  __device__ __forceinline__ part_t get(int b, int c, int lane) const {
    return WIDE_WEIGHTS ? shared[(b * 2 + c) * 32 + lane] : w[b][c];
  }
};
constexpr int WEIGHT_BYTES = WIDE_WEIGHTS ? KB * 2 * 32 * (int)sizeof(Weights::part_t) : 0;

// Selector of B and C: even columns take B_n, odd ones C_n, so that every lane gets both for its two tokens.
struct Selector {
  unsigned w[BCB][NS][WORDS];
  __device__ __forceinline__ void load(int g, int t) {
#pragma unroll
    for (int b = 0; b < BCB; b++)
#pragma unroll
      for (int n = 0; n < NS; n++) {
        const int wanted = R + (g & 1) * NS + n;
#if IO == 0
#pragma unroll
        for (int i = 0; i < 2; i++)
          w[b][n][i] = __float_as_uint((BC0 + b) * 8 + i * 4 + t == wanted ? 1.f : 0.f);
#else
        const int q = (BC0 + b) * 8 + 2 * t;
        w[b][n][0] = bits(pack(q == wanted ? 1.f : 0.f, q + 1 == wanted ? 1.f : 0.f));
#endif
      }
  }
};

// Of two tokens: raw[i][c] the step sizes' arguments of the lane's four channels on top of `bias`; B, C [i][n].
struct Projected {
  float raw[2][4], B[2][NS], C[2][NS];
};
__device__ __forceinline__ Projected project(const Row &r0, const Row &r1, const Weights &weights, const Selector &sel,
                                             const float (&bias)[4], int lane) {
  Projected out;
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  float acc[2][4], bc[NS][4];
#pragma unroll
  for (int b = 0; b < KB; b++) {
#if IO == 0
    const float v[4] = {__uint_as_float(r0.w[2 * b]), __uint_as_float(r1.w[2 * b]), __uint_as_float(r0.w[2 * b + 1]),
                        __uint_as_float(r1.w[2 * b + 1])};
    float high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; i++) high[i] = high_part(v[i]), low[i] = v[i] - high[i];
#endif
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const float first[4] = {bias[2 * c], bias[2 * c + 1], bias[2 * c], bias[2 * c + 1]};
      const Weights::part_t w = weights.get(b, c, lane);
#if IO == 0
      mma_tf32(acc[c], low, __uint_as_float(w.x), __uint_as_float(w.y), b ? acc[c] : first);
      mma_tf32(acc[c], high, __uint_as_float(w.z), __uint_as_float(w.w), acc[c]);
      mma_tf32(acc[c], high, __uint_as_float(w.x), __uint_as_float(w.y), acc[c]);
#else
      mma_k8(acc[c], r0.w[b], r1.w[b], w.y, b ? acc[c] : first);
      mma_k8(acc[c], r0.w[b], r1.w[b], w.x, acc[c]);
#endif
    }
    if (b >= BC0)
#pragma unroll
      for (int n = 0; n < NS; n++) {
        const unsigned(&s)[WORDS] = sel.w[b < BC0 ? 0 : b - BC0][n];
#if IO == 0
        mma_tf32(bc[n], low, __uint_as_float(s[0]), __uint_as_float(s[1]), b > BC0 ? bc[n] : zero);
        mma_tf32(bc[n], high, __uint_as_float(s[0]), __uint_as_float(s[1]), bc[n]);
#else
        mma_k8(bc[n], r0.w[b], r1.w[b], s[0], b > BC0 ? bc[n] : zero);
#endif
      }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int c = 0; c < 4; c++) out.raw[i][c] = acc[c >> 1][i * 2 + (c & 1)];
#pragma unroll
    for (int n = 0; n < NS; n++) out.B[i][n] = bc[n][i * 2], out.C[i][n] = bc[n][i * 2 + 1];
  }
  return out;
}

#ifdef FIXED
constexpr int STRIDE[] = {STRIDES}, SLOT_STRIDE[] = {SLOT_STRIDES};
__device__ __forceinline__ int channels_of(const Scan &) { return CHANNELS; }
__device__ __forceinline__ int row_of(const Scan &) { return PROJ_ROW; }
__device__ __forceinline__ int routes_of(const Scan &) { return ROUTES; }
template <int K> __device__ __forceinline__ int stride_of(const Route &) { return STRIDE[K]; }
template <int K> __device__ __forceinline__ int slot_stride_of(const Route &) { return SLOT_STRIDE[K]; }
#else
__device__ __forceinline__ int channels_of(const Scan &p) { return p.E; }
__device__ __forceinline__ int row_of(const Scan &p) { return p.proj_l; }
__device__ __forceinline__ int routes_of(const Scan &p) { return p.K; }
template <int K> __device__ __forceinline__ int stride_of(const Route &r) { return r.s0; }
template <int K> __device__ __forceinline__ int slot_stride_of(const Route &r) { return r.m0; }
#endif
constexpr int ANY = -1;  // the route that is known at run time only

// Where a lane's segment is; `count` is 0 beyond the route's end.
struct Segment {
  int index, count, pos, slot;
};
__device__ __forceinline__ Segment segment_at(const Route &r, int index) {
  const bool real = FULL || index < r.total;
  const int q = real ? index : 0, line = (int)(((float)q + 0.5f) * r.inverse_segments), first = (q - line * r.segments) * S;
  Segment out;
  out.index = index, out.count = real ? (RAGGED ? min(S, r.length - first) : S) : 0;
  out.pos = r.base + line * r.s1 + first * r.s0, out.slot = r.m_base + line * r.m1 + first * r.m0;
  return out;
}
__device__ __forceinline__ Segment segment_of(const Route &r, int round, int warps, int warp, int g) {
  return segment_at(r, (round * warps + warp) * 8 + g);
}
// Steps from a segment's start to step i, or 0 beyond the line's end.
__device__ __forceinline__ int inside(const Segment &s, int i) { return RAGGED && i >= s.count ? 0 : i; }
__device__ __forceinline__ bool there(const Segment &s, int i) { return RAGGED ? i < s.count : FULL || s.count > 0; }

// Barriers in shared memory between a warp and the next, so that warps drift apart and their loads and arithmetic
// overlap. The lanes that write a link arrive, each for what it wrote. Named barriers would do, but racecheck does not
// follow arrivals at them, and a block with them takes all 16, so that 4 blocks fill a multiprocessor.
typedef unsigned long long link_barrier_t;
__device__ __forceinline__ unsigned shared_at(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }
__device__ __forceinline__ void set_up(link_barrier_t *barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_at(barrier)), "r"(TILE) : "memory");
}
__device__ __forceinline__ void hand_over(unsigned barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier) : "memory");
}
#if __CUDA_ARCH__ >= 900
#define WAIT "mbarrier.try_wait.parity.shared.b64"  // sleeps a while: test_wait instead takes 353 and not 339 us
#else
#define WAIT "mbarrier.test_wait.parity.shared.b64"
#endif
__device__ __forceinline__ void receive(unsigned barrier, unsigned parity) {
  asm volatile("{\n.reg .pred p;\nWAIT%=:\n" WAIT " p, [%0], %1;\n@p bra DONE%=;\nbra WAIT%=;\nDONE%=:\n}" ::"r"(barrier),
               "r"(parity)
               : "memory");
}
#undef WAIT

constexpr int ROOM = 160;  // floats of a warp's exchange of 8 segments' values of 16 channels
__device__ __forceinline__ int room_at(int t, int c) { return t * 40 + c * 8; }

// A lane's segment maps what enters it, v, to leaves + through v. Replaces `leaves` by what enters this lane's segment,
// from those before it (BACK: behind it) in this round and earlier ones. Values pass from warp to warp in their order
// along the route, and from the last one to the first of the next round; `round` counts in that order. A link has a
// place of its own in each of p.kept rounds, and a block barrier stands between taking a value and writing its place
// again: the links alone would order them too, but only by way of all other warps. Half a warp joins four segments of a
// channel each: `room` turns lanes of segments into lanes of channels and back.
template <bool BACK>
__device__ __forceinline__ void enter(const Scan &p, int round, float *room, float *links,
                                      link_barrier_t *barriers, unsigned &parity, const float (&through)[4][NS],
                                      float (&leaves)[4][NS], int lane, int warp, int warps) {
  const int g = BACK ? 7 - (lane >> 2) : lane >> 2, t = lane & 3, channel = lane & 15;
  const bool behind = lane >= 16;  // joins segments 4 to 7
  const int before = BACK ? warps - 1 - warp : warp, from = before ? before - 1 : warps - 1;
  const bool start = round == 0 && before == 0, end = round + 1 == p.rounds && before == warps - 1;
  const int taken_row = ((before ? round : round - 1) & (p.kept - 1)) * warps + from;
  const int left_row = (round & (p.kept - 1)) * warps + before;
  unsigned taken_at = shared_at(links + taken_row * NS * TILE + channel), take = shared_at(barriers + from);
  unsigned left_at = shared_at(links + left_row * NS * TILE + channel), give = shared_at(barriers + before);
  if (round && (round & (p.apart - 1)) == 0) __syncthreads();
  __syncwarp();
#pragma unroll
  for (int n = 0; n < NS; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      room[n * 2 * ROOM + room_at(t, c) + g] = through[c][n];
      room[(n * 2 + 1) * ROOM + room_at(t, c) + g] = leaves[c][n];
    }
  __syncwarp();
  const int at = room_at(channel >> 2, channel & 3) + (behind ? 4 : 0);
  float4 P[NS], h[NS];
  float low_p[NS], low_h[NS], whole_p[NS], whole_h[NS];
#pragma unroll
  for (int n = 0; n < NS; n++) {
    P[n] = *(const float4 *)(room + n * 2 * ROOM + at), h[n] = *(const float4 *)(room + (n * 2 + 1) * ROOM + at);
    const float p4 = P[n].x * P[n].y * (P[n].z * P[n].w);
    const float h4 = fmaf(P[n].w, fmaf(P[n].z, fmaf(P[n].y, h[n].x, h[n].y), h[n].z), h[n].w);
    low_p[n] = __shfl_sync(~0u, p4, channel), low_h[n] = __shfl_sync(~0u, h4, channel);
    whole_p[n] = low_p[n] * p4, whole_h[n] = fmaf(p4, low_h[n], h4);
  }
  // Addresses are found before the wait, as those behind it are waited for by all warps after this one. The backward
  // has no registers left to hold them.
  if (!BACK) asm volatile("" : "+r"(taken_at), "+r"(left_at), "+r"(take), "+r"(give));
  const float *taken = (const float *)__cvta_shared_to_generic(taken_at);
  float *left = (float *)__cvta_shared_to_generic(left_at);
  if (!start) {
    if (SOLO) __syncwarp();
    else receive(take, parity), parity ^= 1;
  }
  float in[NS];
#pragma unroll
  for (int n = 0; n < NS; n++) in[n] = start ? 0.f : taken[n * TILE];
  if (!end) {
    if (behind) {
#pragma unroll
      for (int n = 0; n < NS; n++) left[n * TILE] = fmaf(whole_p[n], in[n], whole_h[n]);
      if (!SOLO) hand_over(give);
    }
  }
#pragma unroll
  for (int n = 0; n < NS; n++) {
    const float e0 = behind ? fmaf(low_p[n], in[n], low_h[n]) : in[n], e1 = fmaf(P[n].x, e0, h[n].x);
    const float e2 = fmaf(P[n].y, e1, h[n].y), e3 = fmaf(P[n].z, e2, h[n].z);
    *(float4 *)(room + (n * 2 + 1) * ROOM + at) = make_float4(e0, e1, e2, e3);
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < NS; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) leaves[c][n] = room[(n * 2 + 1) * ROOM + room_at(t, c) + g];
}
