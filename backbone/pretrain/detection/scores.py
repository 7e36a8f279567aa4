"""COCO's average precision of boxes and masks, answer by answer.

pycocotools does the evaluation, or faster-coco-eval where it is installed: the same numbers to five digits.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ....core.errors import ConfigError, DataError
from ....core.image_answers import ImageAnswer, Instances

SCORES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""Of COCOeval's twelve numbers the first six."""
MOST_PER_IMAGE = 100


def evaluation() -> tuple[Any, Any, Any]:
    """COCO, COCOeval and the module of masks, of whichever package there is. Raises ConfigError."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
        from faster_coco_eval.core import mask

        return COCO, COCOeval_faster, mask
    except ImportError:
        pass
    try:
        from pycocotools import mask
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(f"COCO's scores need pycocotools ({error}): pip install pycocotools") from error
    return COCO, COCOeval, mask


class CocoScorer:
    """Box AP, and mask AP where there are masks (backbone/pretrain/protocol.Scorer).

    Args:
        truth: COCO's structure; images are numbered as in ``tokens``.
        category_ids: of the model's labels, in order.
        masks: whether masks are scored as well.
    """

    def __init__(self, truth: Mapping[str, Any], category_ids: Sequence[int], tokens: Sequence[str], masks: bool):
        self._coco, self._evaluate, self._mask = evaluation()
        self.truth, self.category_ids, self.masks = dict(truth), list(category_ids), masks
        self._open = {token: i for i, token in enumerate(tokens)}
        self._known = set(tokens)
        self._found: list[dict[str, Any]] = []

    def add(self, answers: Iterable[ImageAnswer]) -> None:
        for answer in answers:
            if answer.token not in self._known:
                raise DataError(f"image {answer.token}: not of the set that is scored")
            if answer.token not in self._open:
                raise DataError(f"image {answer.token}: answered twice")
            if answer.instances is None:
                raise DataError(f"image {answer.token}: answer without boxes; use a detector")
            self._found += self._results(self._open.pop(answer.token), answer.instances)

    def _results(self, number: int, found: Instances) -> list[dict[str, Any]]:
        if len(found.labels) and int(found.labels.max()) >= len(self.category_ids):
            raise DataError(
                f"answers of class {int(found.labels.max())}, the set has {len(self.category_ids)} classes; score the "
                "model on the classes that it was trained for"
            )
        if self.masks and found.masks is None and len(found.scores):
            raise DataError("answers without masks; score a model with masks, or set masks=False")
        rows = []
        for i in range(min(len(found.scores), MOST_PER_IMAGE)):
            x0, y0, x1, y1 = map(float, found.boxes_xyxy_px[i])
            row = {
                "image_id": number,
                "category_id": self.category_ids[int(found.labels[i])],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(found.scores[i]),
            }
            if self.masks and found.masks is not None:
                row["segmentation"] = self._mask.encode(np.asfortranarray(found.masks[i].astype(np.uint8)))
            rows.append(row)
        return rows

    def scores(self) -> dict[str, float]:
        if self._open:
            raise DataError(f"{len(self._open)} images were not answered, such as {next(iter(self._open))}")
        kinds = {"bbox": "box", "segm": "mask"} if self.masks else {"bbox": "box"}
        return {
            f"{name} {score}": value
            for kind, name in kinds.items()
            for score, value in zip(SCORES, self._average_precision(kind))
        }

    def _average_precision(self, kind: str) -> list[float]:
        """The numbers of SCORES, NaN where no object is of that size."""
        if not self._found:
            return [0.0] * len(SCORES)
        rows = [{key: value for key, value in row.items() if key != "bbox" or kind == "bbox"} for row in self._found]
        with contextlib.redirect_stdout(io.StringIO()):  # they print their progress
            truth = self._coco()
            numbered = [{**own, "id": i + 1} for i, own in enumerate(self.truth["annotations"])]
            truth.dataset = {"info": {}, **self.truth, "annotations": numbered}
            truth.createIndex()
            run = self._evaluate(truth, truth.loadRes(rows), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
        return [float("nan") if value < 0 else float(value) for value in run.stats[: len(SCORES)]]
