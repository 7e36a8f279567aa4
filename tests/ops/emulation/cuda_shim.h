// CUDA's language for a host compiler, as far as the kernels in ops/csrc/cuda use it: one block at a time, one thread
// at a time. Threads are fibers that run until they wait for each other. A warp that waits at different places, a value
// from an absent thread and a misaligned word stop the program with a message.
#pragma once
#include <setjmp.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned count() const { return x * y * z; }
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) double2 {
  double x, y;
};

namespace emulation {

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  const char* waits = nullptr;  // for which operation of its warp
  bool done = false;
  unsigned exchanges = 0;
  uint64_t given[2] = {};
};
constexpr size_t kStack = 128 << 10;
inline std::vector<Fiber> fibers(1024);
inline jmp_buf scheduler;
inline unsigned current = 0, threads = 0;
inline const std::function<void()>* body = nullptr;
inline const char* kernel = "";
inline bool backwards = false;
inline dim3 thread, block, block_size, grid_size;

[[noreturn]] inline void fail(const char* problem) {
  std::fprintf(stderr, "emulation of %s: block %u,%u thread %u: %s\n", kernel, block.x, block.y, current, problem);
  std::abort();
}
inline void place(unsigned t) {
  current = t;
  thread = dim3(t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y);
}
// Switches by longjmp, which unlike swapcontext leaves the signal mask alone and makes no system call. A fiber that has
// ended a block waits for the next.
inline void leave() {
  if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}
inline void enter() {
  for (;; leave()) {
    (*body)();
    fibers[current].done = true;
  }
}
inline void resume(unsigned t) {
  place(t);
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[t];
  if (fiber.stack) _longjmp(fiber.here, 1);
  fiber.stack = std::make_unique<char[]>(kStack);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}
// The thread goes on when all living threads of its warp wait for the same operation.
inline void wait_for_warp(const char* operation) {
  fibers[current].waits = operation;
  leave();
}
// What thread `other` of the warp gives here.
template <class T>
T exchange(const char* operation, T x, unsigned other) {
  Fiber& own = fibers[current];
  const unsigned turn = own.exchanges++ & 1;  // the next exchange must not overwrite what others have yet to read
  std::memcpy(&own.given[turn], &x, sizeof(T));
  wait_for_warp(operation);
  if (other >= threads || fibers[other].exchanges < own.exchanges) fail("reads an absent thread");
  std::memcpy(&x, &fibers[other].given[turn], sizeof(T));
  return x;
}

inline bool run_warp(unsigned first, unsigned end) {
  bool ran = false;
  for (unsigned i = 0; i < end - first; ++i) {
    const unsigned t = backwards ? end - 1 - i : first + i;
    if (fibers[t].done || fibers[t].waits) continue;
    resume(t);
    ran = true;
  }
  const char* operation = nullptr;
  for (unsigned t = first; t < end; ++t) {
    if (fibers[t].done) continue;
    current = t;
    if (!fibers[t].waits) fail("neither waits nor ended");
    if (operation && std::strcmp(operation, fibers[t].waits)) fail("its warp waits at different places");
    operation = fibers[t].waits;
  }
  for (unsigned t = first; t < end; ++t) fibers[t].waits = nullptr;
  return ran;
}

inline void run_block(const std::function<void()>& f) {
  body = &f;
  threads = block_size.count();
  if (threads == 0 || threads > 1024) fail("no block has this size");
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.done = false;
    fiber.waits = nullptr;
    fiber.exchanges = 0;
  }
  for (bool ran = true; ran;) {
    ran = false;
    for (unsigned first = 0; first < threads; first += 32) {
      const unsigned w = backwards ? (threads - 1) / 32 * 32 - first : first;
      ran |= run_warp(w, std::min(w + 32, threads));
    }
  }
}

inline void run_grid(const char* name, dim3 grid, dim3 size, const std::function<void()>& f) {
  kernel = name;
  grid_size = grid;
  block_size = size;
  if (grid.y > 65535 || grid.z > 65535 || size.z > 64) fail("the grid or block is too large for CUDA");
  for (unsigned i = 0; i < grid.count(); ++i) {
    const unsigned b = backwards ? grid.count() - 1 - i : i;
    block = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    run_block(f);
  }
}

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

template <class F>
void emulate(const char* name, dim3 grid, dim3 block, F f) {
  emulation::run_grid(name, grid, block, f);
}

// Two steps of a macro, so that every place in the source is an operation of its own.
#define DS_TEXT_OF(x) #x
#define DS_TEXT(x) DS_TEXT_OF(x)
#define DS_PLACE __FILE__ ":" DS_TEXT(__LINE__)
#define __syncwarp() emulation::wait_for_warp("__syncwarp " DS_PLACE)
#define __shfl_xor_sync(mask, x, step) \
  emulation::exchange("__shfl_xor_sync " DS_PLACE, x, emulation::current ^ unsigned(step))
#define __shfl_sync(mask, x, source, width) \
  emulation::exchange("__shfl_sync " DS_PLACE, x, emulation::current / (width) * (width) + (source))
#define __any_sync(mask, x) emulation::any_of_warp("__any_sync " DS_PLACE, x)
namespace emulation {
inline int any_of_warp(const char* operation, bool x) {
  const unsigned first = current / 32 * 32, end = std::min(first + 32, threads), turn = fibers[current].exchanges & 1;
  exchange(operation, uint64_t(x), current);
  int found = 0;
  for (unsigned t = first; t < end; ++t)
    found |= fibers[t].exchanges >= fibers[current].exchanges && fibers[t].given[turn];
  return found;
}
}  // namespace emulation

template <class T>
T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) emulation::fail("reads a misaligned word");
  return *p;
}
template <class T>
T atomicAdd(T* p, T x) {
  const T before = *p;
  *p += x;
  return before;
}
inline int atomicMax(int* p, int x) {
  const int before = *p;
  *p = std::max(before, x);
  return before;
}

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
inline float __half2float(__half x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __expf(float x) { return std::exp(x); }
