// Defines: IO, dtype of the maps (0 float, 1 bfloat16, 2 float16); K, odd side of the kernel; V channels per thread; SILU;
// FLIP, to turn the kernel by half a turn, without bias.
//
// A thread walks down COLUMNS neighbouring columns of V channels; the window holds the K rows that one row of outputs
// reads. Eight lanes hold neighbouring channels, so that a block's threads of one channel can add up its sums.
#pragma once
#include "../../cuda/csrc/io.cuh"

typedef Pack<io_t, V> pack_t;

constexpr int COLUMNS = 2, REACH = K / 2, WIDE = COLUMNS + K - 1, GROUPS = 8, UNITS = 16;

// Strides in elements, one along the channels.
struct Map {
  io_t *at;
  long long batch, row, column;
};

struct Conv {
  Map x, out, dpre;  // out is the result of the forward and its gradient in the backward
  const float *weight, *bias;  // (C, K, K), (C,)
  float *partial;
  int batch, height, width, channels, units, strip;
};

// Taps, row by row, and bias of a thread's channels.
struct Taps {
  float w[K][K][V], bias[V];

  __device__ __forceinline__ Taps(const Conv &p, int channel, float scale) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      bias[v] = p.bias && !FLIP ? p.bias[channel + v] * scale : 0.f;
#pragma unroll
      for (int i = 0; i < K * K; i++) {
        const int tap = FLIP ? K * K - 1 - i : i;
        w[i / K][i % K][v] = p.weight[(long long)(channel + v) * (K * K) + tap] * scale;
      }
    }
  }
};

// Where a thread works.
struct Place {
  int channel, column, first, stop;
  long long image;
  bool real;

  __device__ __forceinline__ Place(const Conv &p) {
    const int pairs = (p.width + COLUMNS - 1) / COLUMNS;
    const int unit = blockIdx.x * UNITS + threadIdx.x / GROUPS;
    channel = (blockIdx.y * GROUPS + threadIdx.x % GROUPS) * V;
    column = unit % pairs * COLUMNS, image = unit / pairs;
    first = blockIdx.z * p.strip, stop = min(first + p.strip, p.height);
    real = unit < p.units && channel < p.channels;
  }
};

struct Window {
  float at[K][WIDE][V];
  pack_t ahead[WIDE];
  const io_t *next;  // of the first channel in the output's first column, in the row that is loaded next

  __device__ __forceinline__ Window(const Conv &p, const Place &place) {
    next = p.x.at + place.image * p.x.batch + (place.first - REACH) * p.x.row + place.column * p.x.column + place.channel;
    load(p, place, place.first - REACH);
  }
  __device__ __forceinline__ void load(const Conv &p, const Place &place, int row) {
    const bool inside = row >= 0 && row < min(place.stop + REACH, p.height);
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      const int column = place.column + i - REACH;
      ahead[i] = inside && column >= 0 && column < p.width ? pack_t::load(next + (i - REACH) * p.x.column) : pack_t::zero();
    }
    next += p.x.row;
  }
  // Takes the row that was loaded and asks for the one after.
  __device__ __forceinline__ void advance(const Conv &p, const Place &place, int row) {
#pragma unroll
    for (int j = 0; j < K - 1; j++)
#pragma unroll
      for (int i = 0; i < WIDE; i++)
#pragma unroll
        for (int v = 0; v < V; v++) at[j][i][v] = at[j + 1][i][v];
#pragma unroll
    for (int i = 0; i < WIDE; i++) ahead[i].unpack(at[K - 1][i]);
    load(p, place, row + 1);
  }
  __device__ __forceinline__ float output(const Taps &taps, int column, int v) const {
    float y = taps.bias[v];
#pragma unroll
    for (int j = 0; j < K; j++)
#pragma unroll
      for (int i = 0; i < K; i++) y = fmaf(taps.w[j][i][v], at[j][i + column][v], y);
    return y;
  }
};
