// Choice of the instruction set at run time.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace drivestack {
namespace {

bool runs_here(const Kernels* k) {
  if (!k) return false;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(k->name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (!std::strcmp(k->name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

const Kernels* find(const char* name) {
  for (const Kernels* k : {kernels_avx512(), kernels_avx2(), kernels_baseline()})
    if (runs_here(k) && (!name || !std::strcmp(k->name, name))) return k;
  return nullptr;
}

const Kernels*& chosen() {
  static const Kernels* choice = [] {
    const Kernels* named = find(std::getenv("DRIVESTACK_OPS_ISA"));
    return named ? named : find(nullptr);
  }();
  return choice;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

bool choose_kernels(const char* name) {
  const Kernels* k = find(name);
  if (k) chosen() = k;
  return k != nullptr;
}

}  // namespace drivestack
