// All directions' convolution, bias and SiLU from one read of the tokens. A thread walks V channels of a strip.
#include "common.cuh"

constexpr int STEP = 4;  // tokens in flight per thread

extern "C" __global__ void __launch_bounds__(128) conv_forward(const Conv p) {
  const int groups = p.E / V;
  long long id = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const int e = id % groups * V;
  id /= groups;
  const int strip = id % p.strips;
  const long long b = id / p.strips;
  if (b >= p.batch) return;

  const io_t *x = p.x.at + b * p.x.batch + e;
  io_t *out = p.out.at + b * p.out.batch + e;
  const int first = ANY_FORWARD ? 0 : W - 1, end = ANY_BACKWARD ? p.L + W - 1 : p.L;
  const int begin = first + strip * p.strip, stop = min(begin + p.strip, end);

  pack_t ahead[STEP];
  float window[W - 1 + STEP][V];
#pragma unroll
  for (int i = 0; i < W - 1; i++) load_or_zero(x, p.x.row, begin - W + 1 + i, p.L).unpack(window[i]);
#pragma unroll
  for (int i = 0; i < STEP; i++) ahead[i] = load_or_zero(x, p.x.row, begin + i, p.L);
  const Taps taps(p, e);

  for (int at = begin; at < stop; at += STEP) {
#pragma unroll
    for (int i = 0; i < STEP; i++) ahead[i].unpack(window[W - 1 + i]);
    if (at + STEP < stop) {
#pragma unroll
      for (int i = 0; i < STEP; i++) ahead[i] = load_or_zero(x, p.x.row, at + STEP + i, p.L);
    }
#pragma unroll
    for (int i = 0; i < STEP; i++) {
#pragma unroll
      for (int k = 0; k < K; k++) {
        const int s = position(k, at + i);
        float y[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
          y[v] = taps.bias[k][v];
#pragma unroll
          for (int j = 0; j < W; j++) y[v] = fmaf(taps.w[k][j][v], window[i + j][v], y[v]);
          if (SILU) y[v] *= sigmoid(y[v]);
        }
        if (at + i < stop && s >= 0 && s < p.L) pack_t::from(y).store(out + k * p.out.route + s * p.out.row);
      }
    }
#pragma unroll
    for (int i = 0; i < W - 1; i++) {
#pragma unroll
      for (int v = 0; v < V; v++) window[i][v] = window[i + STEP][v];
    }
  }
}
