// Defines: IO and WIO, dtypes of the tokens and of the weights (0 float, 1 bfloat16, 2 float16); K directions, bit k of
// REVERSE set where direction k runs backward; W taps; V channels per thread; SILU.
//
// One walk serves both directions. When token t arrives, the window holds x[t-W+1 .. t]: all that forward position t
// and backward position t-W+1 need. With a backward direction's taps flipped on loading, both read the window alike.
#pragma once
#include "../../cuda/csrc/io.cuh"

typedef Dtype<WIO>::type weight_t;
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

// Weights per access: as many of a thread's V W neighbours as divide them and fill 16 bytes at most. cuda.py keeps the
// weights' address a multiple of 16.
__device__ constexpr int weights_at_once() {
  int count = 16 / sizeof(weight_t);
  while (V * W % count) count /= 2;
  return count;
}

struct Taps {
  float w[K][W][V], bias[K][V];

  __device__ __forceinline__ Taps(const Conv &p, int e, float scale = 1.f) {
    constexpr int N = weights_at_once();
#pragma unroll
    for (int k = 0; k < K; k++) {
      const long long channel = (long long)k * p.E + e;
#pragma unroll
      for (int v = 0; v < V; v++) bias[k][v] = p.bias ? to_float(p.bias[channel + v]) * scale : 0.f;
#pragma unroll
      for (int i = 0; i < V * W; i += N) {
        float several[N];
        Pack<weight_t, N>::load(p.weight + channel * W + i).unpack(several);
#pragma unroll
        for (int n = 0; n < N; n++) w[k][tap(k, (i + n) % W)][(i + n) / W] = several[n] * scale;
      }
    }
  }
};
