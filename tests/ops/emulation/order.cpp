// Lets the tests turn the order of blocks, warps and threads around.
#include "cuda_shim.h"

extern "C" __attribute__((visibility("default"))) void emulation_run_backwards(int backwards) {
  emulation::backwards = backwards;
}
