"""csrc/common/tap.h as plain C++: the two ways from a tap to corners and weights agree with the hat function."""

import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = Path(__file__).parents[2] / "ops" / "csrc" / "common" / "tap.h"
PROGRAM = r"""
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
namespace {
#include "tap.h"
using L = ScalarLanes<double>;
double hat(double x, int c) { return std::fmax(0.0, 1 - std::fabs(x - c)); }
double value(int i) { return std::cos(1.7 * i + 0.3); }
}  // namespace
int main() {
  double worst = 0;
  const auto note = [&](double a, double b) { worst = std::fmax(worst, a == a && b == b ? std::fabs(a - b) : 1e9); };
  for (int w : {1, 2, 5})
    for (int h : {1, 2, 4})
      for (double x = -2.25; x < w + 2; x += 0.125)
        for (double y = -2.25; y < h + 2; y += 0.125) {
          double exact = 0, dx[2] = {0, 0};
          for (int i = 0; i < w * h; ++i) {
            exact += hat(x, i % w) * hat(y, i / w) * value(i);
            for (int k = 0; k < 2; ++k) dx[k] += hat(x + 1e-6 * k, i % w) * hat(y, i / w) * value(i) * 1e6;
          }
          int32_t corner[4];
          TapAxes<L> axes;
          double weight[4], dot[4], grad[2][3], sum = 0;
          tap_corners<L>(x, y, w, h, 0, w, 1, corner, axes);
          corner_weights<L>(axes, 1.0, weight);
          for (int c = 0; c < 4; ++c) sum += weight[c] * (dot[c] = value(corner[c]));
          note(sum, exact);
          tap_gradients<L>(axes, 2.0, dot, grad[0][0], grad[0][1], grad[0][2]);
          const BlockLimits<L> lx(w), ly(h);
          const double ix = block_place<L>(x, lx), iy = block_place<L>(y, ly);
          const int first = int(iy) * w + int(ix), column = w > 1, row = h > 1 ? w : 0;
          for (int c = 0; c < 4; ++c) dot[c] = value(first + c % 2 * column + c / 2 * row);
          if (first < 0 || first + column + row >= w * h) worst = 1e9;
          block_gradients<L>(x - ix, y - iy, lx, ly, 2.0, dot, grad[1][0], grad[1][1], grad[1][2]);
          for (int k = 0; k < 3; ++k) note(grad[0][k], grad[1][k]);
          note(grad[1][0], exact);
          if (x > -1 && x < w && y > -1 && y < h) note(grad[1][1] / 2e5, (dx[1] - dx[0]) / 1e5);
        }
  for (double bad : {std::nan(""), 1e308 * 10, -1e308 * 10, 1e300}) {
    const BlockLimits<L> limits(5);
    const double place = block_place<L>(bad, limits);
    const BlockWeights<L> weights(bad - place, limits);
    const BlockSlopes<L> slopes(bad - place, limits);
    if (!(place >= 0 && place <= 3)) worst = 1e9;
    for (double zero : {weights.low, weights.high, slopes.low, slopes.high}) note(zero, 0);
  }
  std::printf("%g\n", worst);
}
"""


def test_scalar_lanes(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler")
    (tmp_path / "tap.cpp").write_text(PROGRAM)
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unused-function", f"-I{HEADER.parent}"]
    built = subprocess.run([*command, "tap.cpp", "-o", "tap"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    worst = float(subprocess.run([str(tmp_path / "tap")], capture_output=True, text=True, check=True).stdout)
    assert worst < 1e-9
