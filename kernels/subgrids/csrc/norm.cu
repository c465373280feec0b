// LayerNorm of every position of the joined sub-grids, times the gate or its SiLU. A warp holds a position's channels.
// Defines: IO, WIO, dtypes of the maps and of the weights (0 float, 1 bfloat16, 2 float16); V channels per access,
// PACKS accesses per lane; SILU.
#include "../../cuda/csrc/io.cuh"

typedef Dtype<WIO>::type weight_t;
typedef Pack<io_t, V> pack_t;

struct Norm {
  const io_t *y;     // (batch, 4, ceil(H / 2), ceil(W / 2), E); the strides of the first two in elements
  const io_t *gate;  // (batch, H, W, E) by the strides below
  const weight_t *weight, *bias;
  io_t *out;         // (batch, H, W, E)
  long long y_image, y_grid, image, line;
  int pixel, batch, H, W, E;
  float eps;
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

extern "C" __global__ void __launch_bounds__(128) subgrid_norm(const Norm p) {
  const int lane = threadIdx.x % 32;
  const long long position = (long long)blockIdx.x * 4 + threadIdx.x / 32;
  const int x = position % p.W;
  const int line = position / p.W % p.H;
  const long long b = position / p.W / p.H;
  if (b >= p.batch) return;
  const int w = (p.W + 1) / 2;
  const long long in_grid = (long long)(line / 2) * w + x / 2;
  const io_t *row = p.y + b * p.y_image + (line % 2 + 2 * (x % 2)) * p.y_grid + in_grid * p.E;
  const io_t *gate = p.gate + b * p.image + line * p.line + (long long)x * p.pixel;

  float value[PACKS][V];
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    const int c = (i * 32 + lane) * V;
    (c < p.E ? pack_t::load(row + c) : pack_t::zero()).unpack(value[i]);
#pragma unroll
    for (int v = 0; v < V; v++) sum += value[i][v];
  }
  const float mean = warp_sum(sum) / p.E;
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      value[i][v] = (i * 32 + lane) * V < p.E ? value[i][v] - mean : 0.f;
      squares = fmaf(value[i][v], value[i][v], squares);
    }
  }
  const float rstd = rsqrtf(warp_sum(squares) / p.E + p.eps);
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    const int c = (i * 32 + lane) * V;
    if (c >= p.E) continue;
    float g[V], weight[V], bias[V];
    pack_t::load(gate + c).unpack(g);
    Pack<weight_t, V>::load(p.weight + c).unpack(weight);
    Pack<weight_t, V>::load(p.bias + c).unpack(bias);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float scale = SILU ? g[v] * sigmoid(g[v]) : g[v];
      value[i][v] = fmaf(value[i][v] * rstd, weight[v], bias[v]) * scale;
    }
    pack_t::from(value[i]).store(p.out + position * p.E + c);
  }
}
