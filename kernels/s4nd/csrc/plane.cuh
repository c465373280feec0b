// Separable convolution of small planes, LY x LX <= 64 x 64: a warp owns a feature and walks over its images.
//
// A plane and the Toeplitz matrices of its axes are cut into 8 x 8 tiles as the tensor cores take them: lane (g, t)
// holds row g and columns 2t, 2t + 1 in one register. A tile of a Toeplitz matrix depends on its block diagonal only,
// so 2N - 1 registers hold the matrix of an axis of N tiles. A product's result has the layout of the next product's left
// operand, so what lies between the axes stays in registers. plane_block.cuh: up to 128 x 128, in the same tiles.
#pragma once
#include <cuda_bf16.h>

typedef unsigned u32;
constexpr int NY = (LY + 7) / 8, NX = (LX + 7) / 8;    // tiles an axis
constexpr int MY = (NY + 1) / 2, MX = (NX + 1) / 2;    // strips of 16 rows, the tensor cores' left operand
constexpr int PITCH = 16 * (NX | 1);                   // odd multiples of 16 bytes: no bank conflicts for ldmatrix
constexpr int PLANE = 8 * NY * PITCH;                  // bytes in shared memory
constexpr int ROW_BYTES = 2 * LX;
constexpr bool PADS = LY % 8 || LX % 8;                // positions beyond the plane, kept at zero
constexpr int WIDTH_OUT = ROW_BYTES % 16 == 0 ? 16 : ROW_BYTES % 8 == 0 ? 8 : ROW_BYTES % 4 == 0 ? 4 : 2;

#if KIO == 0
typedef float tap_t;
__device__ __forceinline__ float tap_float(float v) { return v; }
#else
typedef __nv_bfloat16 tap_t;
__device__ __forceinline__ float tap_float(__nv_bfloat16 v) { return __bfloat162float(v); }
#endif

// Images of a feature; strides in elements, that along x is 1.
struct Maps {
  const __nv_bfloat16 *at;
  long long image, feature;
  int row;
};

// Taps (H, taps) of one axis; tap `center` has lag 0.
struct Taps {
  const tap_t *at;
  int taps, center;
};

struct Plane {
  Maps u, dy;
  Taps y, x;
  const tap_t *D;
  __nv_bfloat16 *out;  // (B, H, LY, LX): the result, or the gradient of u
  float *partial;      // (chunks, H, 2 LY - 1 + 2 LX - 1 + 1)
  int batch, H, chunks, per;
};

__device__ __forceinline__ u32 pack(float lo, float hi) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  return *(const u32 *)&v;
}
__device__ __forceinline__ float low(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }

__device__ __forceinline__ void mma16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma8(float (&c)[4], u32 a0, u32 a1, u32 b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

// COUNT tiles whose rows the lanes' addresses name, 8 lanes a tile.
template <bool TRANSPOSE, int COUNT> __device__ __forceinline__ void load_tiles(u32 *r, u32 at) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "ldmatrix loads 1, 2 or 4 tiles");
#define LDMATRIX(FORM) "ldmatrix.sync.aligned.m8n8." FORM ".shared.b16 "
  if constexpr (COUNT == 4) {
    if constexpr (TRANSPOSE)
      asm volatile(LDMATRIX("x4.trans") "{%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
    else
      asm volatile(LDMATRIX("x4") "{%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
  } else if constexpr (COUNT == 2) {
    if constexpr (TRANSPOSE)
      asm volatile(LDMATRIX("x2.trans") "{%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
    else
      asm volatile(LDMATRIX("x2") "{%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
  } else {
    if constexpr (TRANSPOSE)
      asm volatile(LDMATRIX("x1.trans") "{%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
    else
      asm volatile(LDMATRIX("x1") "{%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
  }
#undef LDMATRIX
}

// COUNT tiles from the lane's address on, STEP bytes apart.
template <bool TRANSPOSE, int COUNT, int STEP> __device__ __forceinline__ void load_line(u32 *r, u32 at) {
#pragma unroll
  for (int i = 0; i + 4 <= COUNT; i += 4) load_tiles<TRANSPOSE, 4>(r + i, at + i * STEP);
  constexpr int DONE = COUNT / 4 * 4;
  if constexpr (COUNT % 4 >= 2) load_tiles<TRANSPOSE, 2>(r + DONE, at + DONE * STEP);
  if constexpr (COUNT % 2) load_tiles<TRANSPOSE, 1>(r + COUNT - 1, at + (COUNT - 1) * STEP);
}

// A column of tiles, transposed: lane (g, t) holds rows 2t, 2t + 1 of column g.
template <int COUNT, int ROW> __device__ __forceinline__ void load_column(u32 (&r)[COUNT], u32 plane, int tile) {
  load_line<true, COUNT, 8 * ROW>(r, plane + tile * 16 + (threadIdx.x & 31) * ROW);
}
// A row of tiles as they lie.
__device__ __forceinline__ void load_row(u32 (&r)[NX], u32 plane, int tile) {
  const int lane = threadIdx.x & 31;
  load_line<false, NX, 16>(r, plane + (tile * 8 + (lane & 7)) * PITCH + (lane >> 3) * 16);
}

// A strip of 16 rows of K tiles as the left operand; `lower`, whether its lower half exists. Of a transposed strip,
// which is two columns of tiles, `at` is the first tile's address, else that of the first row.
template <int K, bool TRANSPOSE, int ROW>
__device__ __forceinline__ void load_left(u32 (&r)[(K + 1) / 2][4], u32 at, bool lower) {
  constexpr int HALF = TRANSPOSE ? 16 : 8 * ROW, STEP = TRANSPOSE ? 8 * ROW : 16;  // bytes from tile to tile
  const int lane = threadIdx.x & 31;
  at += (lane & 7) * ROW;
#pragma unroll
  for (int k = 0; k < K; k += 2) {
    u32(&q)[4] = r[k / 2];
    const u32 tile = at + k * STEP;
    if (lower && k + 1 < K) load_tiles<TRANSPOSE, 4>(q, tile + (lane >> 3 & 1) * HALF + (lane >> 4) * STEP);
    else if (lower) load_tiles<TRANSPOSE, 2>(q, tile + (lane >> 3) * HALF), q[2] = q[3] = 0u;
    else {
      load_tiles<TRANSPOSE, 1>(q, tile);
      if (k + 1 < K) load_tiles<TRANSPOSE, 1>(q + 2, tile + STEP);
      else q[2] = 0u;
      q[1] = q[3] = 0u;
    }
  }
}

__device__ __forceinline__ float tap(const tap_t *at, const Taps &k, int lag) {
  const int i = k.center + lag;
  return (u32)i < (u32)k.taps ? tap_float(at[i]) : 0.0f;
}

// The tile on a block diagonal of a Toeplitz matrix, T[i, j] = tap of lag i - j; or of its transpose.
template <bool TRANSPOSED> __device__ __forceinline__ u32 toeplitz_tile(const Taps &k, int h, int diagonal) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int lag = 8 * diagonal + (TRANSPOSED ? 2 * t - g : g - 2 * t);
  const tap_t *at = k.at + (long long)h * k.taps;
  return pack(tap(at, k, lag), tap(at, k, TRANSPOSED ? lag + 1 : lag - 1));
}

// A register that the compiler takes for another than those of the same value: operands of an MMA must be neighbours,
// and one register of a tile with many neighbours would be moved before each.
__device__ __forceinline__ u32 own(u32 v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Toeplitz matrix of N x N tiles as the left operand, by strips of 16 rows: the four tiles of an MMA side by side.
template <int N> struct LeftToeplitz {
  static constexpr int HALF = (N - 1) / 2, COUNT = HALF + (N + 1) / 2;
  u32 quad[COUNT][4];

  __device__ __forceinline__ LeftToeplitz(const Taps &k, int h) {
#pragma unroll
    for (int q = 0; q < COUNT; q++) {
      const int d = 2 * (q - HALF);
      const u32 middle = toeplitz_tile<false>(k, h, d);
      quad[q][0] = middle, quad[q][3] = own(middle);
      quad[q][1] = own(toeplitz_tile<false>(k, h, d + 1)), quad[q][2] = own(toeplitz_tile<false>(k, h, d - 1));
    }
  }
  // Tile k of the upper (half 0) or lower row of tiles of a strip.
  __device__ __forceinline__ u32 operator()(int strip, int half, int k) const {
    return quad[strip - k / 2 + HALF][half + 2 * (k % 2)];
  }
};

// The same as the right operand: the transpose, tap of lag n - k at (k, n); or with BACK the matrix itself.
template <int N, bool BACK> struct RightToeplitz {
  static constexpr int COUNT = N > 1 ? 2 * N - 2 : 1;
  u32 pair[COUNT][2];

  __device__ __forceinline__ RightToeplitz(const Taps &k, int h) {
#pragma unroll
    for (int q = 0; q < COUNT; q++) {
      const int d = q + 1 - N, first = N == 1 || BACK ? d : d + 1, second = BACK ? d + 1 : d;
      pair[q][0] = own(toeplitz_tile<BACK>(k, h, first)), pair[q][1] = own(toeplitz_tile<BACK>(k, h, second));
    }
  }
  __device__ __forceinline__ u32 operator()(int k, int n) const {
    const bool alone = k == N - 1 && N % 2;
    const int q = (BACK ? k / 2 * 2 - n : n - k / 2 * 2) + N - 1 - (BACK ? 0 : 1);
    if (N == 1) return pair[0][0];
    if (alone) return q < 0 ? pair[0][1] : q >= COUNT ? pair[COUNT - 1][1] : pair[q][0];
    return pair[q][k % 2];
  }
};

__device__ __forceinline__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// Queues a copy of WIDTH bytes to shared memory; zeros where there is nothing to copy.
template <int WIDTH> __device__ __forceinline__ void copy_async(char *to, const char *from, bool real) {
  if constexpr (WIDTH == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(WIDTH),
                 "r"(real ? WIDTH : 0)
                 : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups of copies but the last PENDING, and makes them visible to the warp.
template <int PENDING> __device__ __forceinline__ void await() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
  __syncwarp();
}

// The thread of TEAM warps that work together, one or the whole block. Where there are many copies it is opaque to the
// compiler, which would keep the addresses of all in registers through the loop over images.
template <int TEAM, int COPIES> __device__ __forceinline__ int member() {
  int thread = TEAM == 1 ? threadIdx.x & 31 : threadIdx.x;
  if (COPIES > 8 * 32 * TEAM) asm volatile("" : "+r"(thread));
  return thread;
}

// Chunk c of a plane of rows of ROW chunks of WIDTH bytes: its place in a plane without gaps, and in shared memory.
template <int WIDTH> struct Chunk {
  static constexpr int ROW = ROW_BYTES / WIDTH, ALL = LY * ROW;
  int row, column, dense, slot;

  __device__ __forceinline__ explicit Chunk(int c) : row(c / ROW), column((c - row * ROW) * WIDTH), dense(c * WIDTH) {
    slot = dense + (PITCH == ROW_BYTES ? 0 : row * (PITCH - ROW_BYTES));
  }
  __device__ __forceinline__ bool inside() const { return dense < ALL * WIDTH; }
};

// Copies the planes of images b .. b + P - 1 to shared memory, those from `end` on as zeros. Copies of 4 bytes or more
// are only queued; smaller ones go through registers, several of them at once.
template <int TEAM> __device__ __forceinline__ void fetch(char *slot, const Maps &maps, int h, int b, int end) {
  typedef Chunk<VEC> chunk;
  constexpr int THREADS = 32 * TEAM, COPIES = (chunk::ALL + THREADS - 1) / THREADS, BATCH = VEC == 2 ? 16 : 1;
  const int thread = member<TEAM, chunk::ALL>();
#pragma unroll
  for (int q0 = 0; q0 < P * COPIES; q0 += BATCH) {
    unsigned short held[BATCH];
#pragma unroll
    for (int q = q0; q < q0 + BATCH && q < P * COPIES; q++) {
      const int p = q / COPIES, place = q % COPIES * THREADS + thread;
      // Threads with nothing left repeat the last load, so that none of these waits behind a branch.
      const chunk c(VEC == 2 ? min(place, chunk::ALL - 1) : place);
      const char *from = (const char *)(maps.at + h * maps.feature + min(b + p, end - 1) * maps.image);
      from += DENSE ? c.dense : 2ll * c.row * maps.row + c.column;
      if constexpr (VEC == 2) held[q - q0] = *(const unsigned short *)from;
      else if (chunk::ALL % THREADS == 0 || c.inside()) copy_async<VEC>(slot + p * PLANE + c.slot, from, b + p < end);
    }
    if constexpr (VEC == 2) {
#pragma unroll
      for (int q = q0; q < q0 + BATCH && q < P * COPIES; q++) {
        const chunk c(q % COPIES * THREADS + thread);
        const unsigned short value = b + q / COPIES < end ? held[q - q0] : 0;
        if (chunk::ALL % THREADS == 0 || c.inside()) *(unsigned short *)(slot + q / COPIES * PLANE + c.slot) = value;
      }
    }
  }
}

template <int WIDTH> struct Word;
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef u32 type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

// Writes the planes of images b .. to out (B, H, LY, LX).
template <int TEAM>
__device__ __forceinline__ void flush(const char *slot, __nv_bfloat16 *out, int H, int h, int b, int end) {
  typedef Chunk<WIDTH_OUT> chunk;
  typedef typename Word<WIDTH_OUT>::type word;
  const int thread = member<TEAM, chunk::ALL>();
#pragma unroll
  for (int p = 0; p < P; p++) {
    if (b + p >= end) break;
    char *to = (char *)(out + ((long long)(b + p) * H + h) * (LY * LX));
#pragma unroll
    for (int c0 = 0; c0 < chunk::ALL; c0 += 32 * TEAM) {
      const chunk c(c0 + thread);
      if (chunk::ALL % (32 * TEAM) && !c.inside()) break;
      *(word *)(to + c.dense) = *(const word *)(slot + p * PLANE + c.slot);
    }
  }
}

// Writes a strip of 16 rows into a plane of shared memory, nothing but zero beyond the plane's edges.
__device__ __forceinline__ void store_strip(char *plane, int strip, const float (&c)[NX][4]) {
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (2 * strip + half >= NY) continue;
    const int row = 16 * strip + 8 * half + g;
#pragma unroll
    for (int n = 0; n < NX; n++) {
      const int column = 8 * n + 2 * t;
      if ((LY % 8 == 0 || row < LY) && (LX % 8 == 0 || column < LX)) {
        const bool pair = LX % 2 == 0 || column + 1 < LX;
        *(u32 *)(plane + row * PITCH + 2 * column) = pack(c[n][2 * half], pair ? c[n][2 * half + 1] : 0.0f);
      }
    }
  }
}

// result (16 x N tiles) += left (16 x K tiles) times right: right(k, n) is the register of a tile.
template <int K, int N, typename Left, typename Right>
__device__ __forceinline__ void multiply(float (&c)[N][4], Left left, Right right) {
#pragma unroll
  for (int k = 0; k + 2 <= K; k += 2) {
#pragma unroll
    for (int n = 0; n < N; n++)
      mma16(c[n], left(0, k), left(1, k), left(0, k + 1), left(1, k + 1), right(k, n), right(k + 1, n));
  }
  if constexpr (K % 2) {
#pragma unroll
    for (int n = 0; n < N; n++) mma8(c[n], left(0, K - 1), left(1, K - 1), right(K - 1, n));
  }
}

// c += left (16 x 2 tiles, from tile k of K on) times two tiles; where one is left, times one.
template <int K, typename Left>
__device__ __forceinline__ void multiply_pair(float (&c)[4], Left left, int k, u32 b0, u32 b1) {
  if (k + 1 < K) mma16(c, left(0, k), left(1, k), left(0, k + 1), left(1, k + 1), b0, b1);
  else mma8(c, left(0, k), left(1, k), b0);
}

// Runs through a plane's N lines of K tiles, its rows or (transposed) columns, two tiles of every line at a time, so
// that products that wait for each other have others between them: step(line, tile, register, register of the next tile).
template <bool COLUMNS, int K, int N, typename Step> __device__ __forceinline__ void walk_lines(u32 plane, Step step) {
  constexpr int ACROSS = COLUMNS ? 16 : 8 * PITCH, ALONG = COLUMNS ? 8 * PITCH : 16;
  const int lane = threadIdx.x & 31;
  plane += (lane & 7) * PITCH;
  const u32 two = plane + (lane >> 3 & 1) * ALONG + (lane >> 4) * ACROSS, one = plane + (lane >> 3) * ACROSS;
#pragma unroll
  for (int k = 0; k < K; k += 2) {
    if (k + 1 < K) {
      u32 r[N][2];
#pragma unroll
      for (int j = 0; j + 1 < N; j += 2) load_tiles<COLUMNS, 4>(r[j], two + j * ACROSS + k * ALONG);
      if constexpr (N % 2) load_tiles<COLUMNS, 2>(r[N - 1], two + (N - 1) * ACROSS + k * ALONG);
#pragma unroll
      for (int j = 0; j < N; j++) step(j, k, r[j][0], r[j][1]);
    } else {
      u32 r[N];
      load_line<COLUMNS, N, ACROSS>(r, one + k * ALONG);
#pragma unroll
      for (int j = 0; j < N; j++) step(j, k, r[j], 0u);
    }
  }
}

// A strip of a product, as the left operand of the next.
template <int N> __device__ __forceinline__ void round_strip(u32 (&a)[2][N], const float (&c)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++) a[0][n] = pack(c[n][0], c[n][1]), a[1][n] = pack(c[n][2], c[n][3]);
}

// c += d * (the strip's rows of a plane).
__device__ __forceinline__ void add_scaled(float (&c)[NX][4], u32 plane, int strip, float d) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (2 * strip + half >= NY) continue;
    u32 r[NX];
    load_row(r, plane, 2 * strip + half);
#pragma unroll
    for (int n = 0; n < NX; n++) {
      c[n][2 * half] = fmaf(d, low(r[n]), c[n][2 * half]);
      c[n][2 * half + 1] = fmaf(d, high(r[n]), c[n][2 * half + 1]);
    }
  }
}

template <int TEAM> __device__ __forceinline__ void clear(char *at, int bytes) {
  for (int i = member<TEAM, 0>() * 16; i < bytes; i += 512 * TEAM) *(uint4 *)(at + i) = make_uint4(0, 0, 0, 0);
}
