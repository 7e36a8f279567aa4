"""Image models for the API and the verbs: which configs are theirs, their data, answers, files and scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..backbone.pretrain.image_files import SUFFIXES, is_image_name
from ..backbone.pretrain.protocol import ImageDataset, ImageModel
from ..core.errors import ConfigError, DataError
from ..core.files import atomic_path
from ..core.image_answers import ImageAnswer
from ..core.registries import MODELS
from ..core.rle import encode_rle

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

TOP_CLASSES = 5
"""That are written of each image."""
ANSWERS, SEGMENTATION = "answers.jsonl", "segmentation"
_MOST_LETTERS = 120  # of a file's name


def is_image_config(config: Config) -> bool:
    """Whether a config's model answers single images (backbone/pretrain), not clips of surround cameras."""
    kind = (config.get("model") or {}).get("type")
    if isinstance(kind, str):
        kind = MODELS.get(kind)
    return isinstance(kind, type) and issubclass(kind, ImageModel)


def image_dataset(config: Config, images: Sequence[Any] | None = None) -> ImageDataset:
    """The config's test images, or the given ones (paths, or uint8 RGB arrays [H, W, 3]) prepared in the same way.

    Raises ConfigError, DataError.
    """
    from ..engine.config import build_dataset

    if "test_dataset" not in config:
        raise ConfigError("the config has no test_dataset; it says how images become network input")
    settings = dict(config.test_dataset)
    if images is not None:
        settings["images"] = list(images)
    return cast(ImageDataset, build_dataset(settings))


def class_names_of(config: Config, checkpoint: str | Path | None) -> tuple[str, ...]:
    """Names of the classes as the checkpoint states them, () where it does not."""
    from ..core.weights.shipped import weights_file
    from ..engine.fine_tune import names_of

    if checkpoint is None:
        return ()
    return names_of(weights_file(checkpoint)).get("classes", ())


def score_images(
    config: Config, model: ImageModel, out: Path | None = None, class_names: Sequence[str] = (), **run: Any
) -> dict[str, float]:
    """Scores on the config's test images; answers are kept in the folder ``out``, if given.

    class_names: of the model, where they are known: other names than the data's are refused. run: arguments of
    engine.predict.predict_images. Raises DataError where the images have no labels, before predicting.
    """
    from ..engine.predict import predict_images

    dataset = image_dataset(config)
    check_classes(class_names, dataset.class_names)
    scorer = dataset.scorer()
    answers = predict_images(model, dataset, **run)
    if out is None:
        for answer in answers:
            scorer.add([answer])
    else:
        with writing_answers(out, dataset.class_names) as write:
            for answer in answers:
                scorer.add([answer])
                write(answer)
    return scorer.scores()


def check_classes(of_model: Sequence[str], of_data: Sequence[str]) -> None:
    """Raises DataError, naming the first, where both are known and differ."""
    if not of_model or not of_data or tuple(of_model) == tuple(of_data):
        return
    i = next((i for i, (a, b) in enumerate(zip(of_model, of_data)) if a != b), min(len(of_model), len(of_data)))
    model, data = (names[i] if i < len(names) else "nothing" for names in (of_model, of_data))
    raise DataError(
        f"class {i} is {model} in the weights ({len(of_model)} classes) and {data} in the data ({len(of_data)}): give "
        "the data of these weights, or weights of these classes"
    )


def named(class_names: Sequence[str], answer: ImageAnswer) -> tuple[str, ...]:
    """A name for every class that an answer may hold: those that are known, else its number."""
    most = len(answer.probabilities) if answer.probabilities is not None else 0
    if answer.instances is not None and len(answer.instances.labels):
        most = max(most, int(answer.instances.labels.max()) + 1)
    if answer.segmentation is not None and answer.segmentation.size:
        most = max(most, int(answer.segmentation.max()) + 1)
    return (*class_names, *(str(i) for i in range(len(class_names), most)))


def image_validator(config: Config) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """A function (model, iteration) -> scores, for training; the data are read when it is made.

    Raises ConfigError where the config names no test data, DataError where they have no labels.
    """
    from ..engine.predict import predict_images

    dataset = image_dataset(config)
    dataset.scorer()

    def evaluate(model: nn.Module, iteration: int) -> dict[str, float]:
        scorer = dataset.scorer()
        for answer in predict_images(cast(ImageModel, model), dataset, progress=False):
            scorer.add([answer])
        return scorer.scores()

    return evaluate


# ---------------------------------------------------------------------------------------------------------------- files


@contextmanager
def writing_answers(folder: Path, class_names: Sequence[str]) -> Iterator[Callable[[ImageAnswer], None]]:
    """Within, a function that writes an answer: a line of answers.jsonl, and segmentation/TOKEN.png.

    A line holds the image, its size, and ``classes`` [{name, probability}] or ``instances`` [{name, score, box_xyxy_px,
    mask: COCO's run lengths}]. The file appears when all are written.
    """
    with atomic_path(folder / ANSWERS) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(answer: ImageAnswer) -> None:
            write_segmentation(folder, answer)
            file.write(json.dumps(as_plain(answer, named(class_names, answer)), ensure_ascii=False) + "\n")

        yield write


def as_plain(answer: ImageAnswer, class_names: Sequence[str]) -> dict[str, Any]:
    """An answer as plain values; ``class_names``: one for every label in it, see ``named``."""
    line: dict[str, Any] = {"image": answer.token, "size_px": list(answer.size_px)}
    if answer.probabilities is not None:
        best = top_classes(answer.probabilities)
        line["classes"] = [{"name": class_names[i], "probability": _short(answer.probabilities[i])} for i in best]
    if (found := answer.instances) is not None:
        line["instances"] = [
            {"name": class_names[label], "score": _short(score), "box_xyxy_px": [_short(x) for x in box]}
            | ({} if found.masks is None else {"mask": encode_rle(found.masks[i])})
            for i, (label, score, box) in enumerate(zip(found.labels, found.scores, found.boxes_xyxy_px))
        ]
    if answer.segmentation is not None:
        line["segmentation"] = f"{SEGMENTATION}/{_png_name(answer.token)}"
    return line


def top_classes(probabilities: NDArray[np.float32], count: int = TOP_CLASSES) -> list[int]:
    """The most probable classes, best first; equal ones in the order of the classes."""
    return [int(i) for i in np.argsort(-probabilities, kind="stable")[:count]]


def _short(value: Any) -> float:
    return round(float(value), 5)


def _png_name(token: str) -> str:
    """A file name without folders, different for every token: of one that would not be, or be no name, with a hash."""
    name = re.sub(r"[^\w.-]", "_", token.replace("/", "__"), flags=re.ASCII).lstrip(".")
    if name != token.replace("/", "__") or "__" in token or len(name) > _MOST_LETTERS:
        name = f"{name[-_MOST_LETTERS:].lstrip('.')}-{sha256(token.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return name + ".png"


def write_segmentation(folder: Path, answer: ImageAnswer) -> None:
    """The classes of an image's pixels, where it has them, as ``segmentation/TOKEN.png``."""
    if answer.segmentation is not None:
        with atomic_path(folder / SEGMENTATION / _png_name(answer.token), sync=False) as temporary:
            Image.fromarray(answer.segmentation).save(temporary, format="PNG")


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files that are named, and the images in folders that are, by name, each once.

    Raises DataError for one that is not there.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if is_image_name(file.name))
            if not inside:
                raise DataError(f"{path}: holds no images ({', '.join(SUFFIXES)}); name another folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such image or folder; check the path")
    return list(dict.fromkeys(found))
