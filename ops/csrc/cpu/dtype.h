// Storage types of the kernels.
#pragma once

namespace drivestack {
enum class Dtype { f32, f64, bf16, f16 };
}
