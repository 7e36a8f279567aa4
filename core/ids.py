"""Identifiers of two sides that should meet: predictions and ground truth."""

from __future__ import annotations

from collections.abc import Collection


def ids_apart(found: Collection[str], expected: Collection[str], what: str = "samples") -> str:
    """A statement where none of the ids ``found`` in a submission is ``expected``, with an example of each; else ''.

    Scores of such a file would be 0, whatever it holds; and where every id is missing, the list of missing ids hides
    that all have one cause.
    """
    found, expected = set(found), set(expected)
    if not found or not expected or found & expected:
        return ""
    return (
        f"none of its {len(found)} {what} is one of the {len(expected)} of the split: it has {min(found)[:100]!r}, the "
        f"split {min(expected)[:100]!r}; name the split that was predicted, and its ids as the data set has them"
    )
