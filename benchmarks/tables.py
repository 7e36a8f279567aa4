"""Rows of the operator benchmark, as text, JSON and Markdown."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass
class Row:
    """A line of the table. Documented keys first; times in ms."""

    op: str
    shape: str
    dtype: str
    device: str
    pass_: str
    """`pass` in the JSON file."""
    ours_ms: float
    peer: str
    peer_ms: float
    ratio: float
    """Median of the peer over our median."""
    ours_min_ms: float
    peer_min_ms: float
    ratio_of_minima: float
    """Steadier than `ratio` on a busy machine."""
    ours_turns: int
    peer_turns: int
    gigabytes_per_s: float
    share_of_copy: float
    """Of the bandwidth of a large copy, measured in this run."""
    ours_error: float
    peer_error: float
    locations: str
    threads: int
    torch: str
    instruction_set: str


TITLE = f"{'operator':24}{'shape':64}{'pass':18}{'ours ms':>9}{'% copy':>7}  {'peer':26}{'peer ms':>10}"
TITLE += f"{'ratio':>8}{'of min':>8}{'error':>9}{'peer':>9}"


def line(row: Row) -> str:
    return (
        f"{row.op:24}{row.shape:64}{row.pass_:18}{row.ours_ms:9.3f}{100 * row.share_of_copy:7.0f}  {row.peer:26}"
        f"{row.peer_ms:10.3f}{row.ratio:7.1f}x{row.ratio_of_minima:7.1f}x{row.ours_error:9.0e}{row.peer_error:9.0e}"
    )


def as_json(rows: list[Row]) -> str:
    return json.dumps([{key.rstrip("_"): value for key, value in vars(row).items()} for row in rows], indent=1) + "\n"


def as_markdown(rows: list[Row]) -> str:
    """A line per call, sorted: our times, the forward's share of the copy bandwidth, per peer the ratios of forward,
    backward and both."""
    peers = list(dict.fromkeys(row.peer for row in rows))
    calls: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        calls.setdefault((row.op, row.shape), {})[row.pass_, row.peer] = row
    columns = ["operator", "shape", "forward ms", "backward ms", "% of copy", *(f"× {peer}" for peer in peers)]
    lines = [" | ".join(columns), " | ".join("-" * len(columns))]
    for (op, shape), found in sorted(calls.items()):
        some = {label: row for (label, _), row in found.items()}
        cells = [op, shape, f"{some['forward'].ours_ms:.3g}", f"{some['backward'].ours_ms:.3g}"]
        cells.append(f"{100 * some['forward'].share_of_copy:.0f}")
        for peer in peers:
            ratios = [found.get((label, peer)) for label in ("forward", "backward", "forward+backward")]
            cells.append(" / ".join(f"{row.ratio:.1f}" for row in ratios if row))
        lines.append(" | ".join(cells))
    return "".join(f"| {text} |\n" for text in lines)
