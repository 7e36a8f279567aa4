// What a kernel throws in its thread where it gets no scratch memory; `run_tasks` (tensors.h) catches it there.
#pragma once
#include <cstddef>

namespace drivestack {

struct OutOfMemory {
  size_t bytes;  // asked for
};

}  // namespace drivestack
