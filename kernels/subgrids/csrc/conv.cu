// SiLU of a depthwise 3x3 convolution, written into the four sub-grids of every second row and column. A thread makes
// COLUMNS positions of a line, V channels each.
// Defines: IO, WIO, dtypes of the map and of the weights (0 float, 1 bfloat16, 2 float16); V; COLUMNS.
#include "../../cuda/csrc/io.cuh"

typedef Dtype<WIO>::type weight_t;
typedef Pack<io_t, V> pack_t;

struct Conv {
  const io_t *x;           // (batch, H, W, E) by the strides below, in elements
  const weight_t *weight;  // (E, 3, 3)
  const weight_t *bias;
  io_t *out;               // (4, batch, ceil(H / 2), ceil(W / 2), E)
  long long image, line;
  int pixel, batch, H, W, E;
};

extern "C" __global__ void __launch_bounds__(128) subgrid_conv(const Conv p) {
  const int h = (p.H + 1) / 2, w = (p.W + 1) / 2;
  const int groups = p.E / V, strips = (2 * w + COLUMNS - 1) / COLUMNS;
  long long id = (long long)blockIdx.x * 128 + threadIdx.x;
  const int c = id % groups * V;
  id /= groups;
  const int first = id % strips * COLUMNS;
  id /= strips;
  const int y = id % (2 * h);
  const long long b = id / (2 * h);
  if (b >= p.batch) return;

  // A thread's 9 V weights are neighbours: read V at a time, wherever they belong.
  float taps[3][3][V], bias[V];
#pragma unroll
  for (int i = 0; i < 9; i++) {
    float in[V];
    Pack<weight_t, V>::load(p.weight + (long long)c * 9 + i * V).unpack(in);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const int tap = (i * V + j) % 9;
      taps[tap / 3][tap % 3][(i * V + j) / 9] = in[j];
    }
  }
  Pack<weight_t, V>::load(p.bias + c).unpack(bias);
  const io_t *map = p.x + b * p.image + (long long)(y - 1) * p.line + c;
  const bool lines[3] = {y > 0 && y - 1 < p.H, y < p.H, y + 1 < p.H};
  pack_t ahead[3];  // the column that is computed with next
#pragma unroll
  for (int j = 0; j < 3; j++) {
    const bool there = lines[j] && first > 0 && first <= p.W;
    ahead[j] = there ? pack_t::load(map + j * p.line + (long long)(first - 1) * p.pixel) : pack_t::zero();
  }
  float sum[3][V];  // of the columns before, at and behind the one that is read
#pragma unroll
  for (int v = 0; v < V; v++) sum[1][v] = sum[2][v] = bias[v];
#pragma unroll
  for (int i = -1; i <= COLUMNS; i++) {
    const int x = first + i;
    float in[3][V];
#pragma unroll
    for (int j = 0; j < 3; j++) {
      ahead[j].unpack(in[j]);
      if (i < COLUMNS) {
        const bool there = lines[j] && x + 1 < p.W;
        ahead[j] = there ? pack_t::load(map + j * p.line + (long long)(x + 1) * p.pixel) : pack_t::zero();
      }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      sum[0][v] = sum[1][v], sum[1][v] = sum[2][v], sum[2][v] = bias[v];
#pragma unroll
      for (int j = 0; j < 3; j++) {
#pragma unroll
        for (int k = 0; k < 3; k++) sum[k][v] = fmaf(taps[j][2 - k][v], in[j][v], sum[k][v]);
      }
    }
    const int column = x - 1;
    if (i < 1 || column >= 2 * w) continue;
    const bool inside = y < p.H && column < p.W;
    float out[V];
#pragma unroll
    for (int v = 0; v < V; v++) out[v] = inside ? sum[0][v] * sigmoid(sum[0][v]) : 0.f;
    const int grid = y % 2 + 2 * (column % 2);
    const long long at = ((grid * p.batch + b) * h + y / 2) * w + column / 2;
    pack_t::from(out).store(p.out + at * p.E + c);
  }
}
