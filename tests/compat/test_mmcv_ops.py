"""patch_mmcv and mmcv_ext: with compiled operators that load, that do not, with none, and without mmcv."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from mmengine.registry import MODELS

from drivestack.compat import mmcv_ext, patch_mmcv
from drivestack.compat import ms_deform_attn as ours
from drivestack.compat.mmcv_boxes import MmcvMissingError
from drivestack.core.once import forget_warnings

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
    yield tmp_path / "mmcv"
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        del sys.modules[name]
    sys.modules.update(kept)
    MODELS._module_dict.clear()
    MODELS._module_dict.update(registered)


def write_operators(mmcv_folder: Path) -> None:
    """`mmcv.ops` as mmcv and mmcv-lite have it, in short: Python files around functions of the compiled `mmcv._ext`."""
    (mmcv_folder / "ops").mkdir()
    (mmcv_folder / "ops" / "multi_scale_deform_attn.py").write_text(
        f"import mmcv._ext as ext\nassert hasattr(ext, 'ms_deform_attn_forward')\nclass {NAME}: pass\n"
    )
    (mmcv_folder / "ops" / "roi_align.py").write_text("from mmcv._ext import roi_pool_forward as roi_align\n")
    (mmcv_folder / "ops" / "__init__.py").write_text(
        f"from .multi_scale_deform_attn import {NAME}\nfrom .roi_align import roi_align\nclass RoIAlign: pass\n"
    )


def test_mmcv_without_compiled_operators_gets_ours(mmcv_folder):
    write_operators(mmcv_folder)
    finders = list(sys.meta_path)
    for _ in range(2):
        assert patch_mmcv() == [*(f"mmcv.ops.{name}" for name in sorted_names()), f"MODELS['{NAME}']"]
    assert sys.meta_path == finders
    mmcv, operators = importlib.import_module("mmcv"), importlib.import_module("mmcv.ops")
    file = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    assert operators is mmcv.ops
    for name in sorted_names():
        assert getattr(operators, name) is getattr(file, name) is getattr(ours, name)
    layer = MODELS.build({"type": NAME, "embed_dims": 16, "num_heads": 2})
    assert isinstance(layer, ours.MultiScaleDeformableAttention)
    from mmcv.ops import roi_align  # importing is fine, using is not

    with pytest.raises(MmcvMissingError, match=r"mmcv\._ext\.roi_pool_forward is used, but this mmcv has no compiled"):
        roi_align(7)
    with pytest.raises(ImportError, match="cannot import name 'no_operator_of_mmcv'"):
        from mmcv.ops import no_operator_of_mmcv  # noqa: F401
    with pytest.raises(ImportError, match=r"No module named 'mmcv\.ops\.no_file'"):
        importlib.import_module("mmcv.ops.no_file")


def test_a_compiled_module_that_loads_is_left_alone(mmcv_folder):
    write_operators(mmcv_folder)
    (mmcv_folder / "_ext.py").write_text("ms_deform_attn_forward = None\ndef roi_pool_forward(x): return 2 * x\n")
    patch_mmcv()
    operators = importlib.import_module("mmcv.ops")
    assert operators.roi_align(7) == 14 and operators.RoIAlign.__module__ == "mmcv.ops"
    assert operators.MultiScaleDeformableAttention is ours.MultiScaleDeformableAttention
    assert operators.multi_scale_deform_attn.MultiScaleDeformableAttention is ours.MultiScaleDeformableAttention


def test_a_compiled_module_that_does_not_load_is_replaced(mmcv_folder):
    write_operators(mmcv_folder)
    (mmcv_folder / "_ext.py").write_text("raise ImportError('undefined symbol: of another torch')\n")
    patch_mmcv()
    assert importlib.import_module("mmcv.ops").MultiScaleDeformableAttention is ours.MultiScaleDeformableAttention


def test_mmcv_without_python_operators_is_refused(mmcv_folder):
    with pytest.raises(MmcvMissingError, match=r"mmcv\.ops does not import: .*install mmcv-lite 2\.0 or newer"):
        patch_mmcv()
    assert "mmcv._ext" not in sys.modules and "mmcv.ops" not in sys.modules


def test_our_module_is_installed_once_and_answers_every_name(mmcv_folder):
    assert mmcv_ext.install() and mmcv_ext.install()
    module = importlib.import_module("mmcv._ext")
    assert module is mmcv_ext and all(callable(getattr(module, name)) for name in mmcv_ext.SUPPLIED)
    assert not hasattr(module, "__path__")
    with pytest.raises(
        MmcvMissingError, match=r"mmcv\._ext\.three_nn_forward is used, .* drivestack only brings .*nms"
    ):
        module.three_nn_forward(1, key=2)


def test_install_steps_back_before_a_compiled_module(mmcv_folder, caplog):
    (mmcv_folder / "_ext.py").write_text("nms = 'compiled'\n")
    assert not mmcv_ext.install() and importlib.import_module("mmcv._ext").nms == "compiled"
    del sys.modules["mmcv._ext"]
    (mmcv_folder / "_ext.py").write_text("raise ImportError('undefined symbol: of another torch')\n")
    importlib.invalidate_caches()
    forget_warnings()
    assert mmcv_ext.install() and "undefined symbol: of another torch" in caplog.text


def test_the_written_file_stands_for_the_module(mmcv_folder):
    written = mmcv_ext.write_module()
    assert written == mmcv_folder / "_ext.py" and written == mmcv_ext.write_module()
    assert importlib.import_module("mmcv._ext") is mmcv_ext and not list(mmcv_folder.glob(".*"))
    written.unlink()
    (mmcv_folder / f"_ext{EXTENSION_SUFFIXES[0]}").touch()
    assert mmcv_ext.write_module() is None and not written.exists()


def sorted_names() -> tuple[str, ...]:
    return NAME, "MultiScaleDeformableAttnFunction", "multi_scale_deformable_attn_pytorch"


def test_without_mmcv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for function in (patch_mmcv, mmcv_ext.install, mmcv_ext.write_module):
        with pytest.raises(MmcvMissingError, match="pip install mmcv-lite"):
            function()
