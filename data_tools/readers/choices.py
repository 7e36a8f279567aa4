"""What options of readers have in common: several names in one, and classes of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...core.errors import ConfigError


def names_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """An option that takes several names, as a list or in one text with commas between."""
    if not isinstance(value, (list, tuple)):
        value = str(value).split(",")  # a name of digits comes as a number from the command line
    return tuple(stripped for name in value if (stripped := str(name).strip()))


def classes_of(
    categories: Sequence[str], classes: Mapping[str, str] | None, usual: Mapping[str, str] | None = None
) -> list[str]:
    """Class of each object of a category, '' where it has none.

    classes: category -> class, as the user has it; None: the set's own (usual), or the categories themselves. Raises
    ConfigError for what is no mapping to names.
    """
    if classes is not None and not isinstance(classes, Mapping):
        raise ConfigError(f"option classes is {str(classes)[:60]!r}; give a mapping, such as {{'vehicle': 'car'}}")
    for category, name in (classes or {}).items():
        if not isinstance(name, str):
            raise ConfigError(f"option classes: {category!r} becomes {name!r}; give the name of a class")
    chosen = usual if classes is None else classes
    return list(categories) if chosen is None else [chosen.get(category, "") for category in categories]
