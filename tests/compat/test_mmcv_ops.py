"""patch_mmcv: with an mmcv that has operators, with one that has none, and without mmcv."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from mmengine.registry import MODELS

from drivestack.compat import ms_deform_attn as ours
from drivestack.compat import patch_mmcv
from drivestack.compat.mmcv_ops import MmcvMissingError

NAME = "MultiScaleDeformableAttention"


@pytest.fixture
def mmcv_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `mmcv` without operators, in place of any that is installed; the registry is put back."""
    registered = dict(MODELS._module_dict)
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "mmcv"}
    for name in kept:
        del sys.modules[name]
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    yield tmp_path / "mmcv"
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        del sys.modules[name]
    sys.modules.update(kept)
    MODELS._module_dict.clear()
    MODELS._module_dict.update(registered)


def test_mmcv_without_operators_gets_ours_alone(mmcv_folder):
    for _ in range(2):
        assert patch_mmcv() == [*(f"mmcv.ops.{name}" for name in sorted_names()), f"MODELS['{NAME}']"]
    mmcv, operators = importlib.import_module("mmcv"), importlib.import_module("mmcv.ops")
    file = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    assert operators is mmcv.ops
    for name in sorted_names():
        assert getattr(operators, name) is getattr(file, name) is getattr(ours, name)
    layer = MODELS.build({"type": NAME, "embed_dims": 16, "num_heads": 2})
    assert isinstance(layer, ours.MultiScaleDeformableAttention)
    from mmcv.ops import RoIAlign, nms
    from mmcv.ops.roi_align import roi_align

    assert operators.RoIAlign is RoIAlign  # importing is fine ...
    for missing in (RoIAlign, nms, roi_align, type("Own", (RoIAlign,), {})):
        with pytest.raises(MmcvMissingError, match=r"is used, but this mmcv has no compiled operators.*install mmcv"):
            missing(7)  # ... using is not
    assert not hasattr(operators, "__all__")


def sorted_names() -> tuple[str, ...]:
    return NAME, "MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch"


def test_operators_of_a_full_mmcv_stay_but_for_ours(mmcv_folder):
    (mmcv_folder / "ops").mkdir()
    (mmcv_folder / "ops" / "multi_scale_deform_attn.py").write_text(f"class {NAME}: pass\n")
    (mmcv_folder / "ops" / "__init__.py").write_text(
        f"from .multi_scale_deform_attn import {NAME}\nclass RoIAlign: pass\n"
    )
    patch_mmcv()
    operators = importlib.import_module("mmcv.ops")
    assert operators.RoIAlign.__module__ == "mmcv.ops"
    assert operators.MultiScaleDeformableAttention is ours.MultiScaleDeformableAttention
    assert operators.multi_scale_deform_attn.MultiScaleDeformableAttention is ours.MultiScaleDeformableAttention


def test_without_mmcv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MmcvMissingError, match="pip install mmcv-lite"):
        patch_mmcv()
