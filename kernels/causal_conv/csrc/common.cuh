// Defines: IO and WIO, dtypes of the tokens and of the weights (0 float, 1 bfloat16, 2 float16); K directions, bit k of
// REVERSE set where direction k runs backward; W taps; V channels per thread; SILU.
//
// One walk serves both directions. When token t arrives, the window holds x[t-W+1 .. t]: all that forward position t
// and backward position t-W+1 need. With a backward direction's taps flipped on loading, both read the window alike.
#pragma once
#include "../../cuda/csrc/io.cuh"

typedef IoType<WIO>::type weight_t;
typedef Pack<io_t, V> pack_t;

constexpr unsigned ALL = (1u << K) - 1;
constexpr bool ANY_BACKWARD = (REVERSE & ALL) != 0, ANY_FORWARD = (REVERSE & ALL) != ALL;

__device__ __forceinline__ constexpr bool reversed(int k) { return (REVERSE >> k) & 1; }
// Index of the tap that meets the window's i-th oldest token.
__device__ __forceinline__ constexpr int tap(int k, int i) { return reversed(k) ? W - 1 - i : i; }
// Position of direction k that is computed when token t arrives.
__device__ __forceinline__ int position(int k, int t) { return reversed(k) ? t - W + 1 : t; }

// A walked tensor: strides in elements, one along E. With an int a step of a pointer is one instruction.
struct Rows {
  io_t *at;
  long long batch, route;
  int row;
};

struct Conv {
  Rows x, out, dx;  // out is the result of the forward and its gradient in the backward
  const weight_t *weight, *bias;
  float *partial;
  int batch, L, E, strip, strips, tiles;
};

// Tokens per turn of a walk's loop, all loaded one turn ahead. A multiple of the window turns its shifts into renaming.
constexpr int TURN = W > 2 ? W : 4;

__device__ __forceinline__ pack_t load_if(bool there, const io_t *at) {
  return there ? pack_t::load(at) : pack_t::zero();
}
__device__ __forceinline__ bool in_range(int t, int length) { return (unsigned)t < (unsigned)length; }
__device__ __forceinline__ void shift(float (&window)[W][V]) {
#pragma unroll
  for (int i = 0; i < W - 1; i++) {
#pragma unroll
    for (int v = 0; v < V; v++) window[i][v] = window[i + 1][v];
  }
}

struct Taps {
  float w[K][W][V], bias[K][V];

  __device__ __forceinline__ Taps(const Conv &p, int e, float scale = 1.f) {
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        const long long channel = (long long)k * p.E + e + v;
        bias[k][v] = p.bias ? to_float(p.bias[channel]) * scale : 0.f;
#pragma unroll
        for (int i = 0; i < W; i++) w[k][i][v] = to_float(p.weight[channel * W + tap(k, i)]) * scale;
      }
    }
  }
};
