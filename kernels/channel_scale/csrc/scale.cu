// out = first w_0 + second w_1, maps of L positions and C channels, weights by image and channel.
// Defines: IO, WIO, dtypes of the maps and of the weights (0 float, 1 bfloat16, 2 float16); V channels per access; MAPS.
#include "../../cuda/csrc/io.cuh"

typedef Dtype<WIO>::type weight_t;
typedef Pack<io_t, V> pack_t;
// A thread's weights in as many accesses as 16 bytes each ask for.
constexpr int W = V * sizeof(weight_t) > 16 ? 16 / sizeof(weight_t) : V;

struct Scale {
  const io_t *first, *second;  // (batch, L, C)
  const weight_t *weights;     // (batch, MAPS, C)
  io_t *out;
  long long packs;             // batch L C / V
  int L, C;
};

__device__ __forceinline__ void load_weights(const weight_t *at, float (&w)[V]) {
#pragma unroll
  for (int i = 0; i < V; i += W) {
    float part[W];
    Pack<weight_t, W>::load(at + i).unpack(part);
#pragma unroll
    for (int j = 0; j < W; j++) w[i + j] = part[j];
  }
}

extern "C" __global__ void __launch_bounds__(256) channel_scale(const Scale p) {
  const long long id = (long long)blockIdx.x * 256 + threadIdx.x;
  if (id >= p.packs) return;
  const int groups = p.C / V;
  const int c = id % groups * V;
  const long long b = id / groups / p.L;
  const weight_t *weights = p.weights + b * MAPS * p.C + c;
  float w[V], x[V], out[V];
  pack_t::load(p.first + id * V).unpack(x);
  load_weights(weights, w);
#pragma unroll
  for (int v = 0; v < V; v++) out[v] = x[v] * w[v];
  if constexpr (MAPS == 2) {
    pack_t::load(p.second + id * V).unpack(x);
    load_weights(weights + p.C, w);
#pragma unroll
    for (int v = 0; v < V; v++) out[v] = fmaf(x[v], w[v], out[v]);
  }
  pack_t::from(out).store(p.out + id * V);
}
