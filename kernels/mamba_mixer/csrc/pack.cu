// All parameters of a mixer into its two buffers. Defines: SRC, the parameters' dtype; IO, the low buffer's.
#include "types.cuh"

constexpr int ENTRIES = 24;  // cuda_programs.py holds the same number
typedef Dtype<SRC>::type source_t;
typedef Dtype<IO>::type io_t;

// Parameter i: its address, where it goes, and how many elements. From the entry `exact` on, destinations are floats; from
// `exponential` on, they get -exp of their source.
struct Pack {
  const source_t *source[ENTRIES];
  void *to[ENTRIES];
  int count[ENTRIES];
  int exact, exponential;
};

// Blocks in y: one an entry.
extern "C" __global__ void __launch_bounds__(256) pack(const Pack p) {
  const int entry = blockIdx.y, count = p.count[entry];
  const source_t *from = p.source[entry];
  const bool exact = entry >= p.exact, exponential = entry >= p.exponential;
  float *floats = (float *)p.to[entry];
  io_t *low = (io_t *)p.to[entry];
#pragma unroll 4
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const float v = to_float(from[i]);
    if (exact) floats[i] = exponential ? -expf(v) : v;
    else store(low + i, v);
  }
}
