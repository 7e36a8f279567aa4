// Choice of the instruction set at run time.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace drivestack {
namespace {

#define DS_TABLE(isa) \
  { #isa, &isa::dcnv3_kernels, &isa::ms_deform_attn_kernels, &isa::row_kernels, &isa::norm_kernels }
const Kernels tables[] = {
#if defined(__x86_64__)
    DS_TABLE(avx512),
    DS_TABLE(avx2),
#endif
    DS_TABLE(baseline),
};

bool runs_here(const Kernels& k) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(k.name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (!std::strcmp(k.name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

const Kernels* find(const char* name) {
  for (const Kernels& k : tables)
    if (runs_here(k) && (!name || !std::strcmp(k.name, name))) return &k;
  return nullptr;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const chosen = [] {
    const Kernels* named = find(std::getenv("DRIVESTACK_OPS_ISA"));
    return named ? named : find(nullptr);
  }();
  return *chosen;
}

int64_t largest_narrow_image() {
  static const int64_t elements = [] {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    const char* lowered = std::getenv("DRIVESTACK_OPS_NARROW_ELEMENTS");
    return lowered ? std::clamp<int64_t>(std::atoll(lowered), 0, most) : most;
  }();
  return elements;
}

}  // namespace drivestack
