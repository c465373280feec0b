// All directions' convolution, bias and SiLU from one read of the tokens. A thread walks V channels of a strip.
#include "common.cuh"

// y / (1 + e^-y) from -y log2(e), to which the taps are scaled.
constexpr float SCALE = SILU ? -LOG2E : 1.f;
__device__ __forceinline__ float silu_of_scaled(float z) { return z * reciprocal(fmaf(SCALE, ex2(z), SCALE)); }

struct Walk {
  const io_t *x;   // of the token that is loaded next; running pointers, because products of strides cost more
  io_t *out[K];    // of the position that is computed next
  int stop;
  float window[W][V];
  pack_t ahead[TURN];

  __device__ __forceinline__ void load(const Conv &p, int i, bool there) {
    ahead[i] = load_if(there, x);
    x += p.x.row;
  }

  // INSIDE: every position of this turn and every token of the next lies in the strip.
  template <bool INSIDE> __device__ __forceinline__ void turn(const Conv &p, const Taps &taps, int at) {
#pragma unroll
    for (int i = 0; i < TURN; i++) {
      const int t = at + i;
      shift(window);
      ahead[i].unpack(window[W - 1]);
      load(p, i, INSIDE || t + TURN < min(stop, p.L));
#pragma unroll
      for (int k = 0; k < K; k++) {
        float y[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
          y[v] = taps.bias[k][v];
#pragma unroll
          for (int j = 0; j < W; j++) y[v] = fmaf(taps.w[k][j][v], window[j][v], y[v]);
          if (SILU) y[v] = silu_of_scaled(y[v]);
        }
        if (INSIDE || (t < stop && in_range(position(k, t), p.L))) pack_t::from(y).store(out[k]);
        out[k] += p.out.row;
      }
    }
  }
};

// Warps hide the latency here, so few registers are worth more than many channels per thread.
constexpr int RESIDENT = K * W * V <= 16 && V * sizeof(io_t) <= 8 ? 8 : 4;

extern "C" __global__ void __launch_bounds__(128, RESIDENT) conv_forward(const Conv p) {
  const int groups = p.E / V;
  long long id = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const int e = id % groups * V;
  id /= groups;
  const int strip = id % p.strips;
  const long long b = id / p.strips;
  if (b >= p.batch) return;

  const int first = ANY_FORWARD ? 0 : W - 1, end = ANY_BACKWARD ? p.L + W - 1 : p.L;
  const int begin = first + strip * p.strip;
  Walk walk;
  walk.x = p.x.at + b * p.x.batch + (long long)(begin - W + 1) * p.x.row + e;
  walk.stop = min(begin + p.strip, end);
#pragma unroll
  for (int k = 0; k < K; k++)
    walk.out[k] = p.out.at + b * p.out.batch + k * p.out.route + (long long)position(k, begin) * p.out.row + e;
#pragma unroll
  for (int i = 1; i < W; i++) {
    load_if(in_range(begin - W + i, p.L), walk.x).unpack(walk.window[i]);
    walk.x += p.x.row;
  }
#pragma unroll
  for (int i = 0; i < TURN; i++) walk.load(p, i, begin + i < min(walk.stop, p.L));
  const Taps taps(p, e, SCALE);

  const int inside = min(walk.stop, p.L) - 2 * TURN;
#pragma unroll 1
  for (int at = begin; at < walk.stop; at += TURN) {
    if (at >= W - 1 && at <= inside) walk.turn<true>(p, taps, at);
    else walk.turn<false>(p, taps, at);
  }
}
