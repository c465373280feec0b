// For kernels that read and write float, bfloat16 or float16: the type by the macro IO, and several elements per access.
#pragma once
#include "../../cuda/csrc/types.cuh"

typedef Dtype<IO>::type io_t;

__device__ __forceinline__ unsigned pack2(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *(const unsigned *)&v;
}
__device__ __forceinline__ unsigned pack2(float a, float b, __half) {
  const __half2 v = __floats2half2_rn(a, b);
  return *(const unsigned *)&v;
}
__device__ __forceinline__ float2 unpack2(unsigned v, __nv_bfloat16) { return __bfloat1622float2(*(__nv_bfloat162 *)&v); }
__device__ __forceinline__ float2 unpack2(unsigned v, __half) { return __half22float2(*(__half2 *)&v); }

// Neighbouring elements as they lie in memory; every address must be a multiple of the access's size.
template <int BYTES> struct Raw;
template <> struct Raw<2> { typedef unsigned short type; };
template <> struct Raw<4> { typedef unsigned type; };
template <> struct Raw<8> { typedef uint2 type; };
template <> struct Raw<16> { typedef uint4 type; };

template <typename T, int COUNT> struct Pack {
  typedef typename Raw<sizeof(T) * COUNT>::type raw_t;
  raw_t raw;

  __device__ __forceinline__ static Pack zero() {
    Pack p;
    p.raw = raw_t();
    return p;
  }
  __device__ __forceinline__ static Pack load(const T *at) {
    Pack p;
    p.raw = *(const raw_t *)at;
    return p;
  }
  __device__ __forceinline__ void store(T *at) const { *(raw_t *)at = raw; }
  __device__ __forceinline__ void unpack(float (&v)[COUNT]) const {
    if constexpr (sizeof(T) == 4 || COUNT == 1) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) v[i] = to_float(((const T *)&raw)[i]);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT / 2; i++) {
        const float2 two = unpack2(((const unsigned *)&raw)[i], T());
        v[2 * i] = two.x, v[2 * i + 1] = two.y;
      }
    }
  }
  __device__ __forceinline__ static Pack from(const float (&v)[COUNT]) {
    Pack p;
    if constexpr (sizeof(T) == 4 || COUNT == 1) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) ((T *)&p.raw)[i] = from_float<T>(v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT / 2; i++) ((unsigned *)&p.raw)[i] = pack2(v[2 * i], v[2 * i + 1], T());
    }
    return p;
  }
};

// 1 / x, within a few units of float's last place.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + ex2(-LOG2E * x)); }
