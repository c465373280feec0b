// All parameters of a mixer into its two buffers. Defines: SRC, the parameters' dtype; IO, the low buffer's.
#include "types.cuh"

constexpr int ENTRIES = 24;  // cuda_programs.py holds the same numbers
constexpr int PER_BLOCK = 2048;
constexpr int THREADS = 256;
typedef Dtype<SRC>::type source_t;
typedef Dtype<IO>::type io_t;

// Entry i: its address, its first element in its buffer, how many, the first block that works on it, and, unless row is
// 0, rows of that many elements that go to places a stride apart. From the entry `exact` on, the buffer is the one of
// floats; from `exponential` on, it gets -exp of the source.
struct Pack {
  const source_t *source[ENTRIES];
  int offset[ENTRIES], count[ENTRIES], block[ENTRIES], row[ENTRIES], stride[ENTRIES];
  int entries, exact, exponential;
};

template <typename T> struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// Elements [start, start + count) of an entry.
template <typename T>
__device__ __forceinline__ void move(const source_t *from, T *to, int start, int count, int row, int stride, bool exponential) {
  if (row) {
    for (int i = start + threadIdx.x; i < start + count; i += THREADS) store(to + i / row * stride + i % row, to_float(from[i]));
    return;
  }
  from += start;
  to += start;
  const bool fours = (count % 4 | (size_t)from % sizeof(Four<source_t>) | (size_t)to % sizeof(Four<T>)) == 0;
  if (!fours) {
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const float v = to_float(from[i]);
      store(to + i, exponential ? -expf(v) : v);
    }
    return;
  }
#pragma unroll
  for (int part = 0; part < PER_BLOCK / (4 * THREADS); part++) {
    const int i = 4 * (part * THREADS + threadIdx.x);
    if (i >= count) return;
    const Four<source_t> in = *(const Four<source_t> *)(from + i);
    Four<T> out;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float v = to_float(in.v[j]);
      store(out.v + j, exponential ? -expf(v) : v);
    }
    *(Four<T> *)(to + i) = out;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) pack(const Pack p, io_t *low, float *exact) {
  int entry = 0;
  while (entry + 1 < p.entries && blockIdx.x >= p.block[entry + 1]) entry++;
  const int start = (blockIdx.x - p.block[entry]) * PER_BLOCK;
  const int count = min(p.count[entry] - start, PER_BLOCK);
  const source_t *from = p.source[entry];
  const int row = p.row[entry], stride = p.stride[entry], at = p.offset[entry];
  if (entry < p.exact) move(from, low + at, start, count, row, stride, false);
  else move(from, exact + at, start, count, row, stride, entry >= p.exponential);
}
