// Problem sizes of the operators: plain data, no torch, for host and device code.
// Letters: N batch, H W input, Ho Wo output, G groups, K taps, D channels of a group or head, M heads, Q queries,
// S value tokens over all levels, L levels, P points.
#pragma once
#include <cstdint>

namespace drivestack {

struct Dcnv3Sizes {
  int64_t batch, height, width, groups, group_channels, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  double offset_scale;
  bool remove_center, mask_softmax;
  // Elements between two pixels (n, ho, wo) and between two groups of a pixel, of offsets and of masks. Within a group
  // they lie side by side.
  int64_t offset_pixel, offset_group, mask_pixel, mask_group;

  int64_t taps() const { return kernel_h * kernel_w - (remove_center ? 1 : 0); }
  int64_t channels() const { return groups * group_channels; }
};

}  // namespace drivestack
