// Shared by the selective-scan kernels: dtypes, fast exponentials, the parameter block, and step addressing.
#pragma once
#ifndef SOFTPLUS
#define SOFTPLUS 1
#endif
#include "../../cuda/csrc/types.cuh"

typedef Dtype<IO>::type io_t;

constexpr int CHUNK = 16;  // steps between saved states; config.py holds the same number

// Two neighbouring channels as one load or store; needs an even E and aligned tensors.
#if IO == 0
typedef float2 io_pair;
__device__ __forceinline__ float2 unpack(io_pair v) { return v; }
__device__ __forceinline__ io_pair pack(float2 v) { return v; }
#elif IO == 1
typedef __nv_bfloat162 io_pair;
__device__ __forceinline__ float2 unpack(io_pair v) { return __bfloat1622float2(v); }
__device__ __forceinline__ io_pair pack(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
#else
typedef __half2 io_pair;
__device__ __forceinline__ float2 unpack(io_pair v) { return __half22float2(v); }
__device__ __forceinline__ io_pair pack(float2 v) { return __floats2half2_rn(v.x, v.y); }
#endif

__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// log2(1 + 2^t): softplus in units of ln 2, so that exp(dt A) = ex2(steps(t) A). The logarithm alone would lose every digit
// of a small step, so below 2^t = 1/128 two terms of its series take over (2e-5).
__device__ __forceinline__ float softplus2(float t) {
#if IO == 0
  const float x = t * LN2;
  return x > 20.f ? t : log1pf(expf(x)) * LOG2E;
#else
  const float e = ex2(t);
  const float r = e < 0.0078125f ? e * fmaf(-0.5f * LOG2E, e, LOG2E) : lg2(1.f + e);
  return t > 24.f ? t : r;
#endif
}
// Step size in units of ln 2 from delta and LOG2E times its bias.
__device__ __forceinline__ float step_size(float delta, float bias2) {
  const float t = fmaf(delta, LOG2E, bias2);
  return SOFTPLUS ? softplus2(t) : t;
}
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + ex2(-x * LOG2E)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// One input in memory: strides in bytes, unit along channels or states. A route stride of 0 shares it over routes.
struct Stream {
  const io_t *at;
  long long batch, route;
  int row;
};
template <typename T> __device__ __forceinline__ T *ahead(T *p, long long bytes) {
  return (T *)((char *)p + bytes);
}
template <typename T> __device__ __forceinline__ const T *ahead(const T *p, long long bytes) {
  return (const T *)((const char *)p + bytes);
}
template <typename T> __device__ __forceinline__ T *at_row(T *p, int pos, int row) { return ahead(p, (long long)pos * row); }

// One scan. Streams x, delta, z over (B, K, L, E), Bm, Cm over (B, K, L, N), in the order of the grid; A (K, E, N), D and
// bias (K, E). Route k visits route[k * M + s] at step s < lengths[k]; M is a multiple of 4 and every row is padded by at
// least 16 valid positions. A route is cut into `segments` pieces of `segment` steps, counted from its end where
// mirror[k], so that a route and its reverse are cut at the same positions. A launch handles the states [n0, n0 + Ns).
struct Scan {
  Stream x, delta, Bm, Cm, z;
  const float *A, *D, *bias;
  const int *route, *lengths, *mirror;
  long long L;
  int batch, K, E, N, n0, Ns, M, segments, segment, tiles;
  float scale;  // of the merged output and of its gradient: 1 / K where routes are averaged
};

// Steps [first, stop) of a route's segment i.
struct Span {
  int first, stop, len;
  __device__ Span(const Scan &p, int k, int i) {
    len = p.lengths[k];
    if (p.mirror && p.mirror[k]) {
      stop = len - min((p.segments - 1 - i) * p.segment, len);
      first = max(len - (p.segments - i) * p.segment, 0);
    } else {
      first = min(i * p.segment, len);
      stop = min(first + p.segment, len);
    }
  }
};
__device__ __forceinline__ const io_t *row_of(const Stream &s, int b, int k) { return ahead(s.at, b * s.batch + k * s.route); }
__device__ __forceinline__ long long state_at(const Scan &p, long long slot, int n, int e) {
  return (slot * p.N + p.n0 + n) * p.E + e;
}
// Zero beyond the edges: a decay of 1.
__device__ __forceinline__ float load_A(const Scan &p, int k, int n, int e) {
  return e < p.E && n < p.Ns ? p.A[((long long)k * p.E + e) * p.N + p.n0 + n] : 0.f;
}

// The channels of a thread: CH neighbours, as they are in memory.
#ifdef CH
#if CH == 1
typedef io_t raw_t;
__device__ __forceinline__ void widen(raw_t v, float (&f)[CH]) { f[0] = to_float(v); }
template <typename T> __device__ __forceinline__ void store(T *p, const float (&f)[CH]) { *p = from_float<T>(f[0]); }
__device__ __forceinline__ void load(const float *p, float (&f)[CH]) { f[0] = *p; }
#else
typedef io_pair raw_t;
__device__ __forceinline__ void widen(raw_t v, float (&f)[CH]) {
  const float2 w = unpack(v);
  f[0] = w.x, f[1] = w.y;
}
template <typename T> __device__ __forceinline__ void store(T *p, const float (&f)[CH]) {
  if constexpr (sizeof(T) == sizeof(float)) *(float2 *)p = make_float2(f[0], f[1]);
  else *(io_pair *)p = pack(make_float2(f[0], f[1]));
}
__device__ __forceinline__ void load(const float *p, float (&f)[CH]) {
  const float2 v = *(const float2 *)p;
  f[0] = v.x, f[1] = v.y;
}
#endif

// A warp's B and C (ln 2 B, so that it meets step sizes in units of ln 2) of TILE steps, as floats. The values of the
// next tile travel while this one is used.
constexpr int TILE = 8;
struct TileBC {
  float v[TILE][2][NS];
};
// lane = 4 token + part.
#if VEC  // 16 states, rows aligned to 16 bytes: parts are the halves of B, then of C
struct FetchBC {
  uint4 raw[IO == 0 ? 2 : 1];
  const io_t *from;
  int row;
  __device__ __forceinline__ FetchBC(const Scan &p, int b, int k, int lane)
      : from((lane & 2 ? row_of(p.Cm, b, k) : row_of(p.Bm, b, k)) + p.n0 + (lane & 1) * 8),
        row(lane & 2 ? p.Cm.row : p.Bm.row) {}
  __device__ __forceinline__ void load(const Scan &, int, int pos) {
    const uint4 *at = (const uint4 *)at_row(from, pos, row);
    raw[0] = at[0];
    if (IO == 0) raw[IO == 0] = at[IO == 0];
  }
  __device__ __forceinline__ void put(TileBC &to, int lane) const {
    float f[8];
    const io_t *v = (const io_t *)raw;
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] = to_float(v[i]) * (lane & 2 ? 1.f : LN2);
    float4 *at = (float4 *)&to.v[lane >> 2][(lane >> 1) & 1][(lane & 1) * 8];
    at[0] = make_float4(f[0], f[1], f[2], f[3]), at[1] = make_float4(f[4], f[5], f[6], f[7]);
  }
};
#else  // part, part + 4, ... of the token's values of B, then of C
struct FetchBC {
  static constexpr int PER = (NS + 1) / 2;
  io_t raw[PER];
  const io_t *B, *C;
  __device__ __forceinline__ FetchBC(const Scan &p, int b, int k, int) : B(row_of(p.Bm, b, k)), C(row_of(p.Cm, b, k)) {}
  __device__ __forceinline__ void load(const Scan &p, int lane, int pos) {
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int c = i * 4 + (lane & 3), n = c % NS;
      const io_t *row = c < NS ? at_row(B, pos, p.Bm.row) : at_row(C, pos, p.Cm.row);
      raw[i] = c < 2 * NS && n < p.Ns ? row[p.n0 + n] : from_float<io_t>(0.f);
    }
  }
  __device__ __forceinline__ void put(TileBC &to, int lane) const {
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int c = i * 4 + (lane & 3);
      if (c < 2 * NS) to.v[lane >> 2][c / NS][c % NS] = to_float(raw[i]) * (c < NS ? LN2 : 1.f);
    }
  }
};
#endif
#endif
