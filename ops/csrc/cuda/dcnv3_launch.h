// How DCNv3's work is laid out in blocks, forward and backward.
#pragma once
#include "dcnv3.cuh"
#include "launch.h"

namespace drivestack {
namespace cuda {

// Whether the vector kernels can run: whole words of 16 bytes, offsets inside an image of 32 bits.
template <class T>
bool reads_whole_words(const Dcnv3Call& call, const void* contiguous) {
  const Dcnv3Params& p = call.params;
  const int64_t elements = int64_t(p.height) * p.width * std::max<int64_t>(p.value_pixel, p.groups * p.channels);
  return aligned(call.value, 16) && aligned(contiguous, 16) && p.value_pixel * sizeof(T) % 16 == 0 &&
         p.channels * sizeof(T) % 16 == 0 && elements <= limits().elements && elements * sizeof(T) <= UINT32_MAX;
}

// Calls f with the lanes of a group where the kernels for whole 3 x 3 windows can run; false where they cannot.
template <class T, class F>
bool dispatch_3x3(const Dcnv3Params& p, F f) {
  if constexpr (sizeof(T) < 8) {
    constexpr int kWord = 16 / sizeof(T);
    if (p.kernel_h != 3 || p.kernel_w != 3 || p.remove_center) return false;
    if (p.channels == 2 * kWord) return f(std::integral_constant<int, 2>{}), true;
    if (p.channels == 4 * kWord) return f(std::integral_constant<int, 4>{}), true;
    if (p.channels == 8 * kWord) return f(std::integral_constant<int, 8>{}), true;
  }
  return false;
}

// Tiles of equal size that cover `size`, each of `most` at most.
inline int tile_side(int size, int most) {
  const int tiles = (size + most - 1) / most;
  return (size + tiles - 1) / tiles;
}

// Fills in the layout for threads of `channels` channels; returns the block, and the blocks per image.
template <class O>
dim3 lay_out(Dcnv3Params& p, const void* offset, int channels, int64_t& blocks) {
  p.paired = aligned(offset, 2 * sizeof(O)) && p.offset_pixel % 2 == 0 && p.offset_group % 2 == 0;
  p.lanes = power_of_two_from((p.channels + channels - 1) / channels, 32);
  const int most_groups = std::max(1, 64 / p.lanes);
  p.group_blocks = (p.groups + most_groups - 1) / most_groups;
  p.block_groups = (p.groups + p.group_blocks - 1) / p.group_blocks;
  const int threads = p.block_groups * p.lanes, pixels = kDcnv3Threads / threads;
  const int tile_x = tile_side(p.out_width, pixels >= 32 ? 8 : pixels >= 8 ? 4 : 2);
  const int tile_y = tile_side(p.out_height, std::min(64, std::max(1, pixels / tile_x)));
  p.tiles_x = (p.out_width + tile_x - 1) / tile_x;
  blocks = int64_t(p.tiles_x) * ((p.out_height + tile_y - 1) / tile_y) * p.group_blocks;
  return dim3(threads, tile_x, tile_y);
}

}  // namespace cuda
}  // namespace drivestack
