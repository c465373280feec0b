// Gradients of depthwise convolution and SiLU: of the result before SiLU, which depthwise_forward turns into that of the
// input, and of taps and bias. A block leaves a part of their sums, and a second kernel adds the parts in order.
#include "common.cuh"

constexpr int SUMS = K * K + 1, WARPS = GROUPS * UNITS / 32;

// d/dy y sigmoid(y) = s + s (y - y s).
__device__ __forceinline__ float silu_slope(float y) {
  const float s = sigmoid(y);
  return fmaf(s, fmaf(-y, s, y), s);
}

struct Sums {
  float w[K][K][V], bias[V];

  __device__ __forceinline__ float &at(int i, int v) { return i < K * K ? w[i / K][i % K][v] : bias[v]; }
};

__device__ __forceinline__ void walk(const Conv &p, const Place &place, Sums &sums) {
  Window window(p, place);
  const Taps taps(p, place.channel, 1.f);
  const long long at_dout = place.first * p.out.row + place.column * p.out.column + place.channel;
  const io_t *dout = p.out.at + place.image * p.out.batch + at_dout;
  io_t *dpre = p.dpre.at + place.image * p.dpre.batch + place.first * p.dpre.row + place.column * p.dpre.column +
               place.channel;
#pragma unroll 1
  for (int at = place.first - REACH; at < place.stop + REACH; at += K) {
#pragma unroll
    for (int step = 0; step < K; step++) {
      const int row = at + step, done = row - REACH;
      const bool owned = done >= place.first && done < place.stop;
      pack_t given[COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
        given[c] = owned && place.column + c < p.width ? pack_t::load(dout + c * p.out.column) : pack_t::zero();
      window.advance(p, place, row);
      if (!owned) continue;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        float d[V];
        given[c].unpack(d);
#pragma unroll
        for (int v = 0; v < V; v++) {
          if (SILU) d[v] *= silu_slope(window.output(taps, c, v));
          sums.bias[v] += d[v];
#pragma unroll
          for (int j = 0; j < K; j++)
#pragma unroll
            for (int i = 0; i < K; i++) sums.w[j][i][v] = fmaf(d[v], window.at[j][i + c][v], sums.w[j][i][v]);
        }
        if (SILU && place.column + c < p.width) pack_t::from(d).store(dpre + c * p.dpre.column);
      }
      dout += p.out.row, dpre += p.dpre.row;
    }
  }
}

// partial (strips, blocks of units, SUMS, C): the taps' gradients, then the bias's.
extern "C" __global__ void __launch_bounds__(GROUPS *UNITS, K == 3 ? 3 : 1) depthwise_backward(const Conv p) {
  __shared__ float parts[WARPS][SUMS][GROUPS * V];
  const Place place(p);
  Sums sums = {};
  if (place.real) walk(p, place, sums);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < SUMS; i++)
#pragma unroll
    for (int v = 0; v < V; v++) {
      float total = sums.at(i, v);
#pragma unroll
      for (int m = GROUPS; m < 32; m <<= 1) total += __shfl_xor_sync(~0u, total, m);
      if (lane < GROUPS) parts[warp][i][lane * V + v] = total;
    }
  __syncthreads();
  const long long block = (long long)blockIdx.z * gridDim.x + blockIdx.x;
  for (int i = threadIdx.x; i < SUMS * GROUPS * V; i += blockDim.x) {
    const int row = i / (GROUPS * V), c = i % (GROUPS * V), channel = blockIdx.y * GROUPS * V + c;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += parts[w][row][c];
    if (channel < p.channels) p.partial[(block * SUMS + row) * p.channels + channel] = total;
  }
}

// Sums of partial (rows, SUMS C) over its rows, in a fixed order: dweight (C, K, K), dbias (C,) where wanted.
extern "C" __global__ void __launch_bounds__(256) depthwise_sum(const float *partial, float *dweight, float *dbias,
                                                                int rows, int channels) {
  __shared__ float parts[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, columns = SUMS * channels;
  const int i = blockIdx.x * 32 + lane;
  float total = 0.f;
  if (i < columns) {
#pragma unroll 4
    for (int r = warp; r < rows; r += 8) total += partial[(long long)r * columns + i];
  }
  parts[warp][lane] = total;
  __syncthreads();
  if (warp > 0 || i >= columns) return;
  total = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) total += parts[w][lane];
  const int row = i / channels, channel = i % channels;
  if (row < K * K) dweight[(long long)channel * (K * K) + row] = total;
  else if (dbias) dbias[channel] = total;
}
