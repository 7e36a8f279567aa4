"""The classifier: augmentation and mixing by numbers alone, losses as timm's, scores, checkpoints of every form."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from drivestack.backbone import InternImage, InternImageMetaFormer, load_checkpoint, save_safetensors
from drivestack.backbone.pretrain.classification.batch import ClassBatch
from drivestack.backbone.pretrain.classification.dataset import ClassDataset
from drivestack.backbone.pretrain.classification.features import layer_features, save_features
from drivestack.backbone.pretrain.classification.live import arrivals, classify, classify_arrivals
from drivestack.backbone.pretrain.classification.model import Classifier
from drivestack.backbone.pretrain.classification.scores import TopScores
from drivestack.backbone.pretrain.classification.sources import FolderSource
from drivestack.backbone.pretrain.classification.throughput import throughput
from drivestack.backbone.pretrain.generators import seeded
from drivestack.core.errors import CheckpointError, ConfigError, DataError
from drivestack.core.image_answers import ImageAnswer
from support.class_folders import CLASSES, TINY, square, tiny_classifier, write_folders

RELEASED = dict(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel", re_count=1)
MIXUP = dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5)


def batch_of(labels: list[int], draws: list[int] | None = None, size: int = 32) -> ClassBatch:
    count = len(labels)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = [f"t{i}" for i in range(count)]
    return ClassBatch(images, torch.tensor(labels), tokens, [(50, 40)] * count, draws or list(range(count)))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path, train=2, val=2)


# ---------------------------------------------------------------------------------------------------------- transforms


def test_scoring_sees_what_timm_shows_at_a_crop_ratio_of_one() -> None:
    data = pytest.importorskip("timm.data")
    pixels = square(1, 3, 71, 43)
    for crop, mode in ((True, "center"), (False, "squash")):
        ours = ClassDataset(images=[pixels], image=dict(size_px=32, crop=crop))[0].image
        theirs = data.create_transform(32, interpolation="bicubic", crop_pct=1.0, crop_mode=mode)(
            Image.fromarray(pixels)
        )
        torch.testing.assert_close(ours, theirs)


def test_augmentation_follows_from_index_and_draw_alone(folders: Path) -> None:
    pytest.importorskip("timm")
    dataset = ClassDataset(FolderSource(folders, "train"), dict(size_px=32, augment=RELEASED), training=True)
    first = dataset[1, 7].image
    random.seed(5)
    states = random.getstate(), torch.get_rng_state()
    assert torch.equal(dataset[1, 7].image, first)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert not torch.equal(dataset[1, 8].image, first)
    for draw in range(150):  # every operation of RandAugment, at its strongest too
        assert torch.isfinite(dataset[draw % 6, draw].image).all()


def test_settings_that_timm_refuses_are_named(folders: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"image\.augment: .*colour"):
        ClassDataset(FolderSource(folders, "train"), dict(augment=dict(colour=1)), training=True)


# ---------------------------------------------------------------------------------------------------------------- loss


def test_losses_are_timms() -> None:
    loss = pytest.importorskip("timm.loss")
    torch.manual_seed(0)
    batch = batch_of([0, 2, 1, 2])
    model = Classifier(tiny_classifier(), label_smoothing=0.3).eval()
    logits = model.logits(batch)
    torch.testing.assert_close(
        model.loss(batch)["loss_class"], loss.LabelSmoothingCrossEntropy(0.3)(logits, batch.labels)
    )
    mixed = Classifier(model.network, label_smoothing=0.1, mixup=MIXUP)
    seen: list[Tensor] = []
    handle = mixed.network.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0]))
    first = mixed.loss(batch)["loss_class"]
    handle.remove()
    with seeded(0, 1, 2, 3):
        images, targets = mixed._mixer()(batch.images.clone(), batch.labels)
    torch.testing.assert_close(seen[0], images)
    torch.testing.assert_close(first, loss.SoftTargetCrossEntropy()(model.network(images), targets))
    np.random.rand()  # whatever others draw
    assert torch.equal(mixed.loss(batch)["loss_class"], first)
    other = mixed.loss(batch_of([0, 2, 1, 2], [4, 5, 6, 7]))["loss_class"]
    assert not torch.equal(other, first)


def test_labels_that_are_no_classes_and_odd_batches_are_named() -> None:
    model = Classifier(tiny_classifier())
    with pytest.raises(DataError, match=r"image t1: class 3, but the model has 3 classes"):
        model.loss(batch_of([0, 3]))
    with pytest.raises(DataError, match=r"image t0: has no label"):
        model.loss(batch_of([-1, 0]))
    with pytest.raises(ConfigError, match="even batch, got 3"):
        Classifier(tiny_classifier(), mixup=MIXUP).loss(batch_of([0, 1, 2]))


def test_date_and_place_reach_the_variant_that_knows_them() -> None:
    torch.manual_seed(0)
    model = Classifier(InternImageMetaFormer(**TINY, num_classes=3)).eval()
    batch = batch_of([0, 1])
    where = ClassBatch(
        batch.images, batch.labels, batch.tokens, batch.sizes_px, batch.draws, torch.ones(2, 4), torch.ones(2, 3)
    )
    assert not torch.equal(model.logits(batch), model.logits(where))
    assert model.loss(where)["loss_class"].requires_grad


# ------------------------------------------------------------------------------------------------- answers and scores


def test_probabilities_of_all_classes_or_of_chosen_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, batch = tiny_classifier(5), batch_of([0, 1])
    answers = Classifier(network).eval().predict(batch)
    assert [answer.token for answer in answers] == ["t0", "t1"] and answers[0].size_px == (50, 40)
    assert answers[0].probabilities.sum() == pytest.approx(1, abs=1e-6)
    (tmp_path / "map.txt").write_text("4\n0\n4\n")
    for rows in ([4, 0, 4], tmp_path / "map.txt"):
        chosen = Classifier(network, class_rows=rows).eval().predict(batch)[0].probabilities
        logits = network(batch.images)[0, [4, 0, 4]]
        np.testing.assert_allclose(chosen, logits.softmax(0).detach(), rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"map\.txt: must name classes from 0 to 3"):
        Classifier(tiny_classifier(4), class_rows=tmp_path / "map.txt")


def answer(token: str, *probabilities: float) -> ImageAnswer:
    return ImageAnswer(token, (1, 1), np.array(probabilities, np.float32))


def test_top_1_and_top_5_come_out_right_in_any_order() -> None:
    rng = np.random.default_rng(0)
    labels = {f"t{i}": int(rng.integers(9)) for i in range(60)}
    found = rng.random((60, 9)).astype(np.float32)
    scores = TopScores(labels, 9)
    for i in rng.permutation(60):
        scores.add([answer(f"t{i}", *found[i])])
    order = np.argsort(-found, 1, kind="stable")
    hits = order == np.array(list(labels.values()))[:, None]
    assert scores.scores() == {"top1": hits[:, :1].any(1).mean(), "top5": hits[:, :5].any(1).mean()}
    assert next(iter(scores.scores())) == "top1"


def test_scores_of_wrong_answers_are_refused() -> None:
    scores = TopScores({"a": 0, "b": 1}, 2)
    scores.add([answer("a", 0.5, 0.5)])
    with pytest.raises(DataError, match="a: answered twice"):
        scores.add([answer("a", 0.5, 0.5)])
    with pytest.raises(DataError, match="c: not of this set"):
        scores.add([answer("c", 0.5, 0.5)])
    with pytest.raises(DataError, match="answers 3 classes, the data have 2"):
        scores.add([answer("b", 0.5, 0.5, 0)])
    with pytest.raises(DataError, match="1 of 2 images have no answer, such as b"):
        scores.scores()


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return Classifier(tiny_classifier(layer_scale=1e-2)).state_dict()


def check_loaded(model: Classifier, weights: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in weights)


def test_state_dicts_have_the_released_keys(weights: dict[str, Tensor]) -> None:
    assert list(weights) == list(tiny_classifier(layer_scale=1e-2).state_dict())


@pytest.mark.parametrize("form", ["model", "module", "ddp", "ema", "hugging_face", "ours"])
def test_every_published_form_loads(form: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(2)
    path, options = tmp_path / "weights.pth", {}
    if form == "hugging_face":
        path = tmp_path / "model.safetensors"
        scale = lambda key: key.replace("gamma1", "layer_scale1").replace("gamma2", "layer_scale2")
        save_safetensors({"model." + scale(key): value for key, value in weights.items()}, path)
    else:
        behind = {"module." + key: value for key, value in weights.items()}
        content: dict[str, Any] = {
            "model": {"model": weights, "epoch": 299, "max_accuracy": 83.5},
            "module": {"module": weights},
            "ddp": {"model": behind},
            "ema": {"model": {key: value + 1 for key, value in weights.items()}, "model_ema": behind},
            "ours": {"state_dict": weights, "meta": {"classes": CLASSES}},
        }[form]
        options = {"use_ema": True} if form == "ema" else {}
        torch.save(content, path)
    model = Classifier(tiny_classifier(layer_scale=1e-2))
    assert load_checkpoint(model, path, **options).clean
    check_loaded(model, weights)


def test_files_that_do_not_fit_say_why(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for change, problem in (
        (lambda state: state.pop("levels.0.blocks.0.norm1.0.weight"), "missing"),
        (lambda state: state.update(extra=torch.ones(1)), "not in the model"),
        (lambda state: state.update({"head.weight": torch.ones(5, 192)}), "5 classes, the model 3"),
        (lambda state: state.update({"head.bias": torch.tensor([1.0, float("nan"), 0])}), "NaN"),
    ):
        state = dict(weights)
        change(state)
        torch.save({"model": state}, path)
        with pytest.raises(CheckpointError, match=problem):
            load_checkpoint(Classifier(tiny_classifier(layer_scale=1e-2)), path)


def test_1000_classes_of_21841_and_an_encoder_for_other_tasks(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": weights}, path)
    model = Classifier(tiny_classifier(2, layer_scale=1e-2))
    load_checkpoint(model, path, class_rows=[2, 0])
    torch.testing.assert_close(model.state_dict()["head.weight"], weights["head.weight"][[2, 0]])
    encoder = InternImage(**TINY, layer_scale=1.0)
    assert "left out the classification head" in load_checkpoint(encoder, path).notes
    torch.testing.assert_close(encoder.state_dict()["levels.3.blocks.0.gamma1"], weights["levels.3.blocks.0.gamma1"])


# ----------------------------------------------------------------------------------------------- features, live, speed


def test_features_by_layer_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = Classifier(tiny_classifier()).eval(), batch_of([0, 1])
    found = layer_features(model, batch, ["levels.0", "conv_head", ""])
    assert {name.partition(".")[0] for name in found} == {"levels", "conv_head", ""}
    torch.testing.assert_close(found[""], model.logits(batch).detach())
    assert found["conv_head"].shape == (2, 192, 1, 1)
    arrays = np.load(save_features(found, tmp_path / "f.npz"))
    np.testing.assert_array_equal(arrays["conv_head"], found["conv_head"])
    torch.testing.assert_close(load_file(save_features(found, tmp_path / "f.safetensors"))["output"], found[""])
    with pytest.raises(ConfigError, match=r"layer 'levels\.4': .*near it: levels"):
        layer_features(model, batch, ["levels.4"])
    with pytest.raises(ConfigError, match=r"\.npz or \.safetensors"):
        save_features(found, tmp_path / "f.pth")


def test_one_image_a_folder_and_what_comes_into_it(folders: Path) -> None:
    torch.manual_seed(0)
    model, image = Classifier(tiny_classifier()), dict(size_px=32)
    inside = folders / "val" / "red"
    paths = sorted(inside.iterdir())
    found = list(classify(model, [*paths, square(2, 100)], image, batch_size=2))
    assert [answer.token for answer in found] == [*map(str, paths), "2"]
    np.testing.assert_allclose(found[0].probabilities, found[2].probabilities, rtol=1e-4)
    (inside / "broken.png").write_bytes(b"broken")
    live = list(classify_arrivals(model, inside, image, interval_s=0.01, seconds=0.05))
    assert {arrival.path for arrival in live} == {*paths, inside / "broken.png"}
    assert [arrival.path.name for arrival in live if arrival.answer is None] == ["broken.png"]
    assert next(arrival.problem for arrival in live if arrival.problem).startswith(str(inside / "broken.png"))


def test_only_whole_new_images_arrive(tmp_path: Path) -> None:
    (tmp_path / "old.jpg").write_bytes(b"1")
    looks = iter(range(100))
    events = {1: ("new.jpg", b"1"), 2: ("new.jpg", b"12"), 3: ("note.txt", b"x"), 5: ("old.jpg", b"22")}

    def stop() -> bool:
        look = next(looks)
        if look in events:
            name, content = events[look]
            (tmp_path / name).write_bytes(content)
        return look > 8

    seen = [path.name for path in arrivals(tmp_path, existing=False, interval_s=0.002, stop=stop)]
    assert seen == ["new.jpg", "old.jpg"]
    with pytest.raises(DataError, match="no such folder to watch"):
        next(arrivals(tmp_path / "gone"))


def test_throughput_counts_what_it_timed() -> None:
    model = Classifier(tiny_classifier()).train()
    calls: list[nn.Module] = []
    model.network.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    found = throughput(model, size_px=32, batch_size=2, warmup=2, timed=3)
    assert len(calls) == 5 and model.training
    assert found.images_per_s == pytest.approx(6 / found.seconds)
    with pytest.raises(ValueError, match="precision"):
        throughput(model, precision="fp8")
