// Gradients of all directions from one read of the tokens and of the results' gradients; the pre-activation is computed
// again. A warp walks 32 V channels of a strip; the warps of a block hold neighbouring strips and add up their parts of
// the weights' gradient in a fixed order.
#include "common.cuh"

constexpr int MAX_WARPS = 4;

// d/dy y sigmoid(y) = s + s (y - y s).
__device__ __forceinline__ float silu_slope(float y) {
  const float s = sigmoid(y);
  return fmaf(s, fmaf(-y, s, y), s);
}

struct Ahead {
  pack_t x, dout[K];
};

struct Walk {
  const io_t *x, *dout[K];        // of what is loaded next; running pointers, because products of strides cost more
  io_t *dx;                       // of the token that is done next
  int begin, stop;                // positions whose gradients this thread owns
  float window[W][V], sum[W][V];  // tokens t-W+1 .. t, and the parts of their gradient found so far
  float dw[K][W][V], dbias[K][V];
  Ahead ahead[TURN];

  // Everything that token t brings.
  template <bool INSIDE> __device__ __forceinline__ void load(const Conv &p, int i, int t) {
    const bool walked = INSIDE || t < stop + W - 1;
    ahead[i].x = load_if(walked && (INSIDE || t < p.L), x);
    x += p.x.row;
#pragma unroll
    for (int k = 0; k < K; k++) {
      ahead[i].dout[k] = load_if(walked && (INSIDE || in_range(position(k, t), p.L)), dout[k]);
      dout[k] += p.out.row;
    }
  }

  // INSIDE: every position of this turn is owned, and every token of the next is read.
  template <bool INSIDE> __device__ __forceinline__ void turn(const Conv &p, const Taps &taps, int at) {
#pragma unroll
    for (int i = 0; i < TURN; i++) {
      const int t = at + i, done = t - W + 1;
      shift(window);
      ahead[i].x.unpack(window[W - 1]);
      float d[K][V];
#pragma unroll
      for (int k = 0; k < K; k++) ahead[i].dout[k].unpack(d[k]);
      load<INSIDE>(p, i, t + TURN);
#pragma unroll
      for (int v = 0; v < V; v++) sum[W - 1][v] = 0.f;
#pragma unroll
      for (int k = 0; k < K; k++) {
        const int s = position(k, t);
        const bool owned = INSIDE || (s >= begin && s < stop);
#pragma unroll
        for (int v = 0; v < V; v++) add(taps, k, v, d[k][v], owned);
      }
      if (INSIDE || (done >= begin && done < stop)) pack_t::from(sum[0]).store(dx);
      dx += p.dx.row;
      shift(sum);
    }
  }

  __device__ __forceinline__ void add(const Taps &taps, int k, int v, float d, bool owned) {
    if (SILU) {
      float y = taps.bias[k][v];
#pragma unroll
      for (int j = 0; j < W; j++) y = fmaf(taps.w[k][j][v], window[j][v], y);
      d *= silu_slope(y);
    }
    const float mine = owned ? d : 0.f;
    dbias[k][v] += mine;
#pragma unroll
    for (int j = 0; j < W; j++) {
      dw[k][j][v] = fmaf(mine, window[j][v], dw[k][j][v]);
      sum[j][v] = fmaf(taps.w[k][j][v], d, sum[j][v]);
    }
  }
};

constexpr int RESIDENT = sizeof(io_t) == 4 ? 2 : K * W * V <= 16 ? 4 : 3;

extern "C" __global__ void __launch_bounds__(32 * MAX_WARPS, RESIDENT) conv_backward(const Conv p) {
  __shared__ float parts[MAX_WARPS][W + 1][V][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int tile = blockIdx.x % p.tiles, stack = blockIdx.x / p.tiles;
  const int stacks = (p.strips + warps - 1) / warps;
  const long long b = stack / stacks;
  const int strip = stack % stacks * warps + warp, e = (tile * 32 + lane) * V;

  Walk walk = {};
  walk.begin = strip * p.strip, walk.stop = min(walk.begin + p.strip, p.L);
  if (e < p.E && walk.begin < walk.stop) {
    const long long oldest = walk.begin - W + 1;
    walk.x = p.x.at + b * p.x.batch + oldest * p.x.row + e;
    walk.dx = p.dx.at + b * p.dx.batch + oldest * p.dx.row + e;
#pragma unroll
    for (int k = 0; k < K; k++)
      walk.dout[k] = p.out.at + b * p.out.batch + k * p.out.route + (long long)position(k, walk.begin) * p.out.row + e;
#pragma unroll
    for (int i = 1; i < W; i++) {
      load_if(in_range(oldest + i - 1, p.L), walk.x).unpack(walk.window[i]);
      walk.x += p.x.row;
    }
#pragma unroll
    for (int i = 0; i < TURN; i++) walk.load<false>(p, i, walk.begin + i);
    const Taps taps(p, e);
    const int inside = walk.stop - 2 * TURN;
#pragma unroll 1
    for (int at = walk.begin; at < walk.stop + W - 1; at += TURN) {
      if (at >= walk.begin + W - 1 && at <= inside) walk.turn<true>(p, taps, at);
      else walk.turn<false>(p, taps, at);
    }
  }

  // partial (stacks of strips, K, W + 1, E): the taps' gradients, then the bias's.
#pragma unroll
  for (int k = 0; k < K; k++) {
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) {
#pragma unroll
      for (int i = 0; i < W; i++) parts[warp][tap(k, i)][v][lane] = walk.dw[k][i][v];
      parts[warp][W][v][lane] = walk.dbias[k][v];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (W + 1) * 32 * V; i += blockDim.x) {
      const int channel = i % (32 * V), row = i / (32 * V), e_out = tile * 32 * V + channel;
      float total = 0.f;
      for (int w = 0; w < warps; w++) total += parts[w][row][channel % V][channel / V];
      if (e_out < p.E) p.partial[(((long long)stack * K + k) * (W + 1) + row) * p.E + e_out] = total;
    }
  }
}

// Sums of partial (rows, n = K (W + 1) E) over its rows, each always in the same order: dweight (K, E, W), dbias (K, E).
extern "C" __global__ void __launch_bounds__(256) conv_sum(const float *partial, weight_t *dweight, weight_t *dbias,
                                                           int rows, int E, int n) {
  __shared__ float parts[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
  float total = 0.f;
  if (i < n) {
#pragma unroll 4
    for (int r = warp; r < rows; r += 8) total += partial[(long long)r * n + i];
  }
  parts[warp][lane] = total;
  __syncthreads();
  if (warp > 0 || i >= n) return;
  total = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) total += parts[w][lane];
  const int e = i % E, row = i / E % (W + 1), k = i / E / (W + 1);
  const long long channel = (long long)k * E + e;
  if (row < W) dweight[channel * W + row] = from_float<weight_t>(total);
  else if (dbias) dbias[channel] = from_float<weight_t>(total);
}
