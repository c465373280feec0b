// Depthwise convolution, bias and SiLU of a channels-last map in one pass; with FLIP, its gradient for the input.
#include "common.cuh"

// y / (1 + e^-y) from -y log2(e), to which the taps are scaled.
constexpr float SCALE = SILU ? -LOG2E : 1.f;
__device__ __forceinline__ float silu_of_scaled(float z) { return z * reciprocal(fmaf(SCALE, ex2(z), SCALE)); }

extern "C" __global__ void __launch_bounds__(GROUPS *UNITS, K == 3 ? 4 : 1) depthwise_forward(const Conv p) {
  const Place place(p);
  if (!place.real) return;
  Window window(p, place);
  const Taps taps(p, place.channel, SCALE);
  io_t *out = p.out.at + place.image * p.out.batch + place.first * p.out.row + place.column * p.out.column + place.channel;
#pragma unroll 1
  for (int at = place.first - REACH; at < place.stop + REACH; at += K) {
#pragma unroll
    for (int step = 0; step < K; step++) {  // as many as there are rows: the window's shifts are renamings
      const int row = at + step, done = row - REACH;
      window.advance(p, place, row);
      if (done < place.first || done >= place.stop) continue;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        float y[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
          y[v] = window.output(taps, c, v);
          if (SILU) y[v] = silu_of_scaled(y[v]);
        }
        if (place.column + c < p.width) pack_t::from(y).store(out + c * p.out.column);
      }
      out += p.out.row;
    }
  }
}
