"""Message classes of the Waymo Open Dataset, from the official package without what it depends on (no TensorFlow)."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from .errors import ConfigError

PACKAGE = "waymo-open-dataset-tf-2-12-0==1.6.7"


def waymo_messages(module: str) -> ModuleType:
    """A module of generated message classes, as "dataset_pb2", "label_pb2" or "protos.metrics_pb2".

    Raises ConfigError with the commands that install it where it is missing or cannot be imported.
    """
    try:
        return importlib.import_module(f"waymo_open_dataset.{module}")
    except (ImportError, TypeError) as error:  # TypeError: protobuf refuses classes of another time
        raise ConfigError(
            f"Waymo records need the official message classes ({' '.join(str(error).split())[:200]}): make waymo, or "
            f"pip install protobuf && pip install --no-deps {PACKAGE}"
        ) from None


def parse(message_class: Any, data: bytes) -> Any:
    """A message of its serialized bytes. Raises ValueError for bytes that are none."""
    from google.protobuf.message import DecodeError

    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise ValueError(f"no {message_class.DESCRIPTOR.name}: {' '.join(str(error).split())[:200]}") from None
