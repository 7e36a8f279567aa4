"""What a run records: ``log.jsonl`` in its folder always, TensorBoard's event files beside it where requested.

TensorBoard is an optional package, imported here only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import write_errors


class RunLog:
    """Appends records of one iteration each. On other ranks than 0 make none.

    folder: the run's; tensorboard: also write event files for `tensorboard --logdir FOLDER`.

    Raises ConfigError where TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.path = folder / "log.jsonl"
        self._events = require_tensorboard()(str(folder)) if tensorboard else None

    def write(self, record: Mapping[str, Any], group: str = "train") -> None:
        """``record`` holds ``iter`` and values; the numbers among them, also one mapping deep, become curves."""
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self._events is None:
            return
        for name, value in record.items():
            values = value.items() if isinstance(value, Mapping) else [(name, value)]
            for leaf, number in values:
                if leaf != "iter" and isinstance(number, (int, float)):
                    self._events.add_scalar(f"{group}/{leaf}", number, record["iter"])
        self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def require_tensorboard() -> type:
    """TensorBoard's writer of event files. Raises ConfigError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        fix = "run `pip install tensorboard`, or leave the key out"
        raise ConfigError(f"tensorboard=True in the config, but it is not installed: {fix}.") from error
    return SummaryWriter
