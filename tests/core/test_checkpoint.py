"""Weights load from every published form, and what does not fit is said, not swallowed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule

from drivestack.backbone import (
    CBInternImage,
    InternImage,
    InternImageClassifier,
    ResNet,
    internimage,
    load_checkpoint,
    load_state,
    read_state_dict,
    save_safetensors,
)
from drivestack.backbone.internimage.conversion import read_class_rows
from drivestack.core.errors import CheckpointError
from drivestack.core.weights.files import read_metadata

TINY = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def classifier() -> InternImageClassifier:
    return randomized(InternImageClassifier(**TINY, num_classes=10))


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Every tensor different from what a constructor makes, so that a copy is seen."""
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return model.eval()


def same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("place", ["state_dict", "model", "module", None])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "img_backbone.", "model.", "module.img_backbone."])
def test_published_forms(place, prefix, classifier, tmp_path):
    state = prefixed(classifier.state_dict(), prefix)
    if "backbone" in prefix:
        neck = prefix.replace("img_backbone", "img_neck").replace("backbone", "neck") + "convs.0.weight"
        state[neck] = torch.zeros(2)
    torch.save({place: state, "epoch": 3} if place else state, tmp_path / "weights.pth")
    model = InternImageClassifier(**TINY, num_classes=10)
    report = load_checkpoint(model, tmp_path / "weights.pth")
    assert report.clean
    assert report.loaded == len(model.state_dict())
    assert same(model, classifier.state_dict())


def test_averaged_weights_on_request(classifier, tmp_path):
    raw = InternImageClassifier(**TINY, num_classes=10).state_dict()
    averaged = prefixed(classifier.state_dict(), "module.")
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "weights.pth")
    model = InternImageClassifier(**TINY, num_classes=10)
    load_checkpoint(model, tmp_path / "weights.pth", use_ema=True)
    assert same(model, classifier.state_dict())
    load_checkpoint(model, tmp_path / "weights.pth")
    assert same(model, raw)
    torch.save(raw, tmp_path / "raw.pth")
    with pytest.raises(CheckpointError, match=r"raw\.pth.*no averaged weights"):
        load_checkpoint(model, tmp_path / "raw.pth", use_ema=True)


def test_explicit_prefix(classifier, tmp_path):
    both = {**prefixed(classifier.state_dict(), "teacher."), **prefixed(classifier.state_dict(), "student.")}
    torch.save(both, tmp_path / "weights.pth")
    model = InternImageClassifier(**TINY, num_classes=10)
    assert load_checkpoint(model, tmp_path / "weights.pth", prefix="student.").clean
    with pytest.raises(CheckpointError, match=r"no key starts with 'pupil\.'.*teacher\.patch_embed"):
        load_checkpoint(model, tmp_path / "weights.pth", prefix="pupil.")


def test_safetensors_round_trip_with_metadata(classifier, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(classifier, path, {"seed": 7, "command": "drivestack train"})
    assert read_metadata(path) == {"seed": "7", "command": "drivestack train"}
    assert read_state_dict(path).keys() == classifier.state_dict().keys()
    model = InternImageClassifier(**TINY, num_classes=10)
    assert load_checkpoint(model, path).clean
    assert same(model, classifier.state_dict())
    assert list(tmp_path.iterdir()) == [path]


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors({"a": torch.ones(2)}, path)
    with pytest.raises(AttributeError):
        save_safetensors({"a": "not a tensor"}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_of_the_training_loop_and_of_the_release_open(classifier, tmp_path, monkeypatch):
    import numpy as np

    history = HistoryBuffer([1.0, 2.0], [1, 1])
    message_hub = {"log_scalars": {"loss": history}, "runtime_info": {"iter": np.int64(3), "lr": np.float64(0.1)}}
    torch.save({"state_dict": classifier.state_dict(), "message_hub": message_hub}, tmp_path / "own.pth")

    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    options = yacs.CfgNode(BASE=[""], MODEL=yacs.CfgNode(NAME="internimage_t"))
    options.__dict__["__immutable__"] = True
    torch.save({"model": classifier.state_dict(), "config": options, "epoch": 9}, tmp_path / "release.pth")
    monkeypatch.undo()

    for name in ("own.pth", "release.pth"):
        assert load_checkpoint(InternImageClassifier(**TINY, num_classes=10), tmp_path / name).clean


class Surprise:
    """An object that a checkpoint has no business to hold."""

    def __reduce__(self):
        return Path.touch, (Path("surprise"),)


def test_code_in_a_checkpoint_is_refused_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.ones(1)}, "config": Surprise()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth.*not read for safety"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "surprise").exists()


def broken_files(tmp_path: Path) -> dict[str, str]:
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:1000])
    save_safetensors({"a": torch.ones(1000)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:1000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    return {
        "absent.pth": "no such checkpoint file",
        "cut.pth": "broken or not a checkpoint",
        "cut.safetensors": "broken or not safetensors",
        "empty.pth": "broken or not a checkpoint",
        "page.pth": "a web page",
        "pointer.pth": "git lfs pull",
        "text.pth": "broken or not a checkpoint",
        "none.pth": "holds no weights",
        "list.pth": "holds no weights",
    }


def test_broken_files_are_one_clear_error(tmp_path):
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(CheckpointError, match=message) as error:
            load_checkpoint(InternImage(**TINY), tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_strict_mismatch_is_listed_and_changes_nothing(classifier, tmp_path):
    state = dict(classifier.state_dict())
    del state["patch_embed.conv1.bias"]
    state["extra.weight"] = torch.ones(1)
    state["head.weight"] = torch.ones(7, 192)
    save_safetensors(state, tmp_path / "w.safetensors")
    model = InternImageClassifier(**TINY, num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, tmp_path / "w.safetensors")
    text = str(error.value)
    assert "missing in the checkpoint (1): patch_embed.conv1.bias" in text
    assert "not in the model (1): extra.weight" in text
    assert "head.weight is [7, 192], the model's [10, 192]" in text
    assert "7 classes, the model 10: give class_rows" in text
    assert same(model, before)


def test_not_strict_loads_what_fits_and_reports(classifier, tmp_path, caplog):
    state = dict(classifier.state_dict())
    state["head.weight"] = torch.ones(7, 192)
    report = load_state(model := InternImageClassifier(**TINY, num_classes=10), state, strict=False)
    assert not report.clean
    assert report.wrong_shape == (("head.weight", (7, 192), (10, 192)),)
    assert report.loaded == len(state) - 1
    assert torch.equal(model.head.bias, classifier.head.bias)
    assert "wrong shape (1)" in caplog.text


def test_a_checkpoint_of_another_config_is_recognised():
    with torch.device("meta"):
        base, small = internimage("B").state_dict(), internimage("S")
    with pytest.raises(CheckpointError, match=r"looks like InternImage-B .*the model is InternImage-S"):
        load_state(small, base)
    with pytest.raises(CheckpointError, match="no key fits"):
        load_state(ResNet(base_channels=4), {"a": torch.ones(1)})


def test_22k_head_by_rows_or_at_random(classifier, tmp_path):
    save_safetensors(classifier, tmp_path / "w.safetensors")
    (tmp_path / "map.txt").write_text("9\n0\n9\n")
    rows = read_class_rows(tmp_path / "map.txt")
    model = InternImageClassifier(**TINY, num_classes=3)
    assert load_checkpoint(model, tmp_path / "w.safetensors", class_rows=rows).clean
    assert torch.equal(model.head.weight, classifier.head.weight[[9, 0, 9]])
    assert torch.equal(model.head.bias, classifier.head.bias[[9, 0, 9]])

    model = InternImageClassifier(**TINY, num_classes=3)
    head = model.head.weight.clone()
    assert load_checkpoint(model, tmp_path / "w.safetensors", random_head=True).clean
    torch.testing.assert_close(model.head.weight, 0.001 * head)
    assert torch.equal(model.levels[0].blocks[0].mlp.fc1.weight, classifier.levels[0].blocks[0].mlp.fc1.weight)

    with pytest.raises(CheckpointError, match="0 to 9"):
        load_checkpoint(model, tmp_path / "w.safetensors", class_rows=[10, 0, 1])
    (tmp_path / "map.txt").write_text("cat\n")
    with pytest.raises(CheckpointError, match=r"map\.txt: not a class map"):
        read_class_rows(tmp_path / "map.txt")


def test_classification_weights_serve_as_features(classifier, tmp_path):
    """The head is left out; branch scales that InternImage-T's checkpoint lacks are 1, which changes nothing."""
    torch.save({"model": classifier.state_dict()}, tmp_path / "t_1k_224.pth")
    encoder = randomized(InternImage(**TINY, layer_scale=1.0))
    report = load_checkpoint(encoder, tmp_path / "t_1k_224.pth")
    assert report.clean
    assert len(report.notes) == 2
    x = torch.randn(1, 3, 70, 91)  # any image size
    with torch.no_grad():
        for a, b in zip(encoder(x), classifier.forward_features(x)):
            torch.testing.assert_close(a, b)


def test_pooled_features_need_no_classes(classifier):
    model = InternImageClassifier(**TINY, num_classes=0)
    assert load_state(model, classifier.state_dict()).clean


def test_a_lost_branch_scale_is_still_an_error():
    state = dict(InternImage(**TINY, layer_scale=1.0).state_dict())
    del state["levels.0.blocks.0.gamma1"]
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint \(1\): levels\.0\.blocks\.0\.gamma1"):
        load_state(InternImage(**TINY, layer_scale=1.0), state)


def test_nine_taps_lose_their_centre():
    full = InternImage(**TINY)
    for i, parameter in enumerate(full.levels[0].blocks[0].dcn.mask.parameters()):
        torch.nn.init.normal_(parameter, i)
    model = InternImage(**TINY, remove_center=True)
    assert load_state(model, full.state_dict()).clean
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    theirs, ours = full.levels[1].blocks[0].dcn, model.levels[1].blocks[0].dcn  # two groups
    mask = theirs.mask.bias.view(2, 9)[:, kept].flatten()
    assert torch.equal(ours.mask.bias, mask)
    offset = theirs.offset.weight.view(2, 9, 2, -1)[:, kept].flatten(0, 2)
    assert torch.equal(ours.offset.weight, offset)


def test_hugging_face_names(tmp_path):
    source = randomized(InternImageClassifier(**TINY, num_classes=10, layer_scale=1e-5, post_norm=True))
    state = {key.replace(".gamma", ".layer_scale"): value for key, value in source.state_dict().items()}
    save_safetensors(prefixed(state, "model."), tmp_path / "model.safetensors")
    model = InternImageClassifier(**TINY, num_classes=10, layer_scale=1e-5, post_norm=True)
    assert load_checkpoint(model, tmp_path / "model.safetensors").clean
    assert same(model, source.state_dict())


def test_init_weights_loads_what_pretrained_names(tmp_path, classifier):
    path = tmp_path / "weights.safetensors"
    save_safetensors(classifier, path)
    model = BaseModule()  # MMEngine's runner starts at the whole model
    model.img_backbone = InternImage(**TINY, pretrained=str(path))
    model.init_weights()
    assert torch.equal(model.img_backbone.patch_embed.conv1.weight, classifier.patch_embed.conv1.weight)

    composite = CBInternImage(**TINY, pretrained=str(path))
    composite.init_weights()
    for trunk in composite.cb_modules:
        assert torch.equal(trunk.levels[3].norm[0].weight, classifier.levels[3].norm[0].weight)
    assert not composite.lead.gamma0.any()

    torch.save({**ResNet(base_channels=4).state_dict(), "fc.weight": torch.ones(3)}, tmp_path / "r50.pth")
    ResNet(base_channels=4, pretrained=str(tmp_path / "r50.pth")).init_weights()
    with pytest.raises(CheckpointError, match="absent"):
        ResNet(pretrained=str(tmp_path / "absent.pth")).init_weights()


def test_letters_that_no_text_has_are_named(tmp_path):
    for state, notes in (({"a\ud800": torch.zeros(1)}, {}), ({"a": torch.zeros(1)}, {"classes": "\ud800"})):
        with pytest.raises(CheckpointError, match=r"holds letters that no text has \('.*ud800'\)"):
            save_safetensors(state, tmp_path / "w.safetensors", notes)
    assert not list(tmp_path.iterdir())
