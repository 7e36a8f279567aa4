"""The verbs about splits whose parts lie apart: check lists of scenes, or make new ones, from poses."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_source, at_least_zero, known_source, seed_number, verb
from .outputs import writing

if TYPE_CHECKING:
    from ..core.frames import Frame
    from ..data_tools.readers.registry import DataSource
    from ..data_tools.splits.places import Overlap, Place

OVERLAPPING = 1


def _add_places(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument(
        "--and",
        dest="further",
        metavar="KEY=VALUE",
        nargs="+",
        action="append",
        default=[],
        help="another source, as it differs from the first: --and split=val, --and root=DIR; repeatable",
    )
    parser.add_argument("--metres", type=float, default=100.0, metavar="M", help="near is within (default: 100)")
    parser.add_argument(
        "--locations",
        metavar="FILE",
        help="JSON: scene -> city, where the set does not state it and each city has a global frame of its own",
    )


def add_check_splits(verbs: Any) -> None:
    examples = [
        "drivestack check-splits --dataroot data/nuscenes --version v1.0-trainval --split train --and split=val",
        "drivestack check-splits --dataroot D --version V --split train --and split=val --lists mine.json",
        "drivestack check-splits --reader openlane --dataroot D --split train --and split=val --metres 50",
    ]
    summary = "say which scenes of two parts of the data come near one another"
    parser = verb(verbs, "check-splits", _run_check, summary, examples)
    _add_places(parser)
    parser.add_argument(
        "--lists",
        metavar="FILE",
        help="JSON: part -> scenes or samples, by name or token, as splits.json (default: each source is a part)",
    )
    parser.add_argument("--limit", type=at_least_zero, default=10, metavar="N", help="scenes to print (default: 10)")
    parser.add_argument("--out", metavar="FILE", help="write all of them here, as JSON")


def _sources(options: argparse.Namespace) -> list[DataSource]:
    from dataclasses import replace

    from ..core.errors import ConfigError
    from ..engine.config import parse_override

    first = known_source(options)
    found = [first]
    for texts in options.further:
        changes = dict(parse_override(text) for text in texts)
        if not isinstance(reader := changes.pop("reader", first.reader), str) and not callable(reader):
            raise ConfigError(f"--and reader={reader}: give the reader's name")
        root = changes.pop("root", first.root)
        found.append(replace(first, reader=reader, root=root).changed(**changes))
    return found


def _name(source: DataSource, all_sources: Sequence[DataSource]) -> str:
    """What a source is called: by its split where that tells it from the others."""
    splits = [str(other.options.get("split", "")) for other in all_sources]
    return str(source.options["split"]) if all(splits) and len(set(splits)) == len(splits) else str(source)


def _parts(options: argparse.Namespace) -> dict[str, list[Frame]]:
    from ..core.errors import ConfigError
    from ..data_tools.splits.places import frames_of_list, read_lists

    sources = _sources(options)
    if options.lists is None:
        if len(sources) < 2:
            raise ConfigError("one source has nothing to be compared with: name another (--and split=val), or --lists")
        parts = {_name(source, sources): source.read() for source in sources}
        if len(parts) < len(sources):
            raise ConfigError("the same source is named twice; --and says how the second differs from the first")
        return parts
    lists = read_lists(options.lists)
    if len(lists) < 2:
        raise ConfigError(f"{options.lists}: holds one part; it has nothing to be compared with")
    frames = [frame for source in sources for frame in source.read()]
    return {name: frames_of_list(frames, held, f"{options.lists}: {name}") for name, held in lists.items()}


def _located(options: argparse.Namespace, parts: Mapping[str, Sequence[Frame]]) -> dict[str, list[Place]]:
    """The places of each part; ``--locations`` may name scenes of any of them."""
    from ..core.errors import ConfigError
    from ..data_tools.splits.places import places_of, read_locations

    locations = read_locations(options.locations) if options.locations else {}
    names = {frame.scene_name or frame.scene_token for frames in parts.values() for frame in frames}
    if strange := sorted(set(locations) - names):
        raise ConfigError(f"{options.locations}: no scene {strange[0]!r} here; name scenes such as {min(names)!r}")
    found = {}
    for name, frames in parts.items():
        own = {frame.scene_name or frame.scene_token for frame in frames}
        found[name] = places_of(frames, {scene: where for scene, where in locations.items() if scene in own})
    stated = sorted({place.location for places in found.values() for place in places} - {""})
    if stated:
        print(f"locations   {', '.join(stated[:8])}{f' and {len(stated) - 8} more' if len(stated) > 8 else ''}")
    else:
        print("locations   not stated: all poses are taken to be of one global frame (--locations names cities)")
    return found


def _run_check(options: argparse.Namespace) -> int:
    from ..core.files import write_json
    from ..data_tools.splits.places import overlap

    with writing("check-splits", [Path(options.out)] if options.out else []):
        places = _located(options, _parts(options))
        for name, held in places.items():
            print(f"{name:<11} {len(held)} scenes, {sum(map(len, held))} keyframes")
        found = {(a, b): overlap(places[a], places[b], options.metres) for a, b in combinations(places, 2)}
        for pair, own in found.items():
            print("\n".join(["", *_report(pair, own, places, options.limit)]))
        if options.out:
            write_json(options.out, [_as_json(pair, own) for pair, own in found.items()], indent=1)
            print(f"\nwrote {options.out}")
    return 0 if all(own.disjoint for own in found.values()) else OVERLAPPING


def _report(pair: tuple[str, str], own: Overlap, places: Mapping[str, Sequence[Place]], limit: int) -> list[str]:
    if own.disjoint:
        return [f"{pair[0]} and {pair[1]} lie apart: no keyframe within {own.distance_m:g} m of the other part"]
    lines = []
    if own.shared:
        some = f"{', '.join(own.shared[:5])}{', ...' if len(own.shared) > 5 else ''}"
        lines.append(f"{pair[0]} and {pair[1]} share {len(own.shared)} scenes: {some}")
    for (name, other), near in zip((pair, pair[::-1]), (own.first, own.second)):
        count, total = sum(scene.near for scene in near), sum(map(len, places[name]))
        lines.append(
            f"{name}: {count} of {total} keyframes ({count / total:.1%}) of {len(near)} of {len(places[name])} scenes "
            f"lie within {own.distance_m:g} m of {other}"
        )
        for scene in near[:limit]:
            others = ", ".join(f"{seen} ({count}, {least:.1f} m)" for seen, count, least in scene.others[:3])
            more = f" and {len(scene.others) - 3} more" if len(scene.others) > 3 else ""
            lines.append(f"  {scene.scene:<24} {scene.near} of {scene.keyframes} keyframes near {others}{more}")
        if len(near) > limit:
            lines.append(f"  ... and {len(near) - limit} more scenes (--limit, --out)")
    return lines


def _as_json(pair: tuple[str, str], own: Overlap) -> dict[str, Any]:
    from dataclasses import asdict

    near = {name: [asdict(scene) for scene in held] for name, held in zip(pair, (own.first, own.second))}
    return {"parts": pair, "metres": own.distance_m, "disjoint": own.disjoint, "shared": own.shared, "near": near}


def add_make_splits(verbs: Any) -> None:
    examples = [
        "drivestack make-splits --dataroot D --version V --split train --and split=val --cut \\",
        "    --parts geo_train=0.85 geo_val=0.15 --out D/V/splits.json",
        "drivestack train CONFIG --set train_dataloader.dataset.source.split=geo_train ...",
    ]
    summary = "make a split whose parts do not come near one another"
    parser = verb(verbs, "make-splits", _run_make, summary, examples)
    _add_places(parser)
    parser.add_argument(
        "--parts",
        metavar="NAME=SHARE",
        nargs="+",
        required=True,
        help="e.g. geo_train=0.8 geo_val=0.2",
    )
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--cut", action="store_true", help="cut groups that are too large, leaving out scenes on the border"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="JSON, part -> scenes; of a nuScenes set: DIR/VERSION/splits.json"
    )


def _run_make(options: argparse.Namespace) -> int:
    from ..core.errors import ConfigError
    from ..data_tools.splits.make import check_part_names, make_split, write_split
    from ..engine.config import parse_override

    shares = dict(parse_override(text) for text in options.parts)
    if len(shares) < len(options.parts):
        raise ConfigError("--parts names a part twice")
    check_part_names(shares)
    for name, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"--parts {name}={value}: write a share, for example {name}=0.8")
    with writing("make-splits", [Path(options.out)]):
        frames = {f"source {i}": source.read() for i, source in enumerate(_sources(options))}
        places = [place for held in _located(options, frames).values() for place in held]
        counts = Counter(place.scene for place in places)
        if twice := [scene for scene, count in counts.items() if count > 1]:
            raise ConfigError(f"scene {twice[0]} is in two of the sources; name sources that share none")
        found = make_split(places, shares, options.metres, options.seed, options.cut)
        replaced = write_split(options.out, found.parts)
    print(
        f"groups      {found.groups} of scenes within {options.metres:g} m; the largest has {found.largest} keyframes"
    )
    for name, scenes in found.parts.items():
        wanted = shares[name] / sum(shares.values())
        print(
            f"{name:<11} {len(scenes)} scenes, {found.keyframes[name]} keyframes: {found.shares[name]:.1%}, "
            f"{wanted:.1%} wanted"
        )
    if options.cut:
        print(f"left out    {len(found.left_out)} scenes, {found.left_out_keyframes} keyframes, where groups were cut")
    elif max(abs(found.shares[n] - shares[n] / sum(shares.values())) for n in shares) > 0.05:
        print(
            "the shares are missed because scenes that hang together stay together: --cut cuts such groups and leaves "
            "out what lies on the border, or choose a smaller --metres",
            file=sys.stderr,
        )
    print(f"wrote {options.out}" + (f" (replaced {', '.join(replaced)})" if replaced else ""))
    return 0
