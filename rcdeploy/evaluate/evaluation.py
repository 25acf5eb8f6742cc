"""An evaluation from end to end: pictures drawn, shown to networks, scored, and written down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import replacing, write_json

from ..plots import grid
from ..recipe import digest
from .image_set import ImageSet
from .metrics import Readings, Scorer
from .reference import Progress
from .source import Drawing, Settings, Source

SHOWN, COLUMNS = 32, 8
"""pictures in the grid, and in a row of it"""
LONGEST_NAME = 200
"""bytes of a file's name before its number and ending"""


def identity_of(
    source: Source, prompts: Sequence[str], seed: int, settings: Settings, size: tuple[int, int]
) -> dict[str, Any]:
    """What the pictures depend on. size: (height, width) as they are kept."""
    return {
        "model": source.model["digest"],
        "prompts": digest(list(prompts)),
        "count": len(prompts),
        "seed": seed,
        **settings,
        "drawn_size": list(source.size),
        "size": list(size),
    }


def smaller(native: tuple[int, int], resize: int | None) -> tuple[int, int]:
    """(height, width) in which pictures are kept. resize: the edge asked for; None: 256 of 512 as in the paper."""
    if resize is None:
        return (256, 256) if native == (512, 512) else native
    if resize == 0:
        return native
    if resize > min(native):
        raise RcdeployError(
            f"--resize {resize} would enlarge pictures of {native[0]}x{native[1]}", fix="Give a smaller edge, or 0."
        )
    return resize, resize


def evaluate(
    pictures: ImageSet,
    drawing: Drawing,
    scorer: Scorer,
    *,
    seed: int,
    settings: Settings,
    split: Sequence[bool] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Draws what is missing, reads what was not read, and scores; any number of processes may share the folder.

    split: which prompts belong to the half "with". Returns {"scores": {"all", "with"?, "without"?}, "counts",
    "seconds"}: the seconds are this process's.
    """
    started = time.perf_counter()
    drawn = pictures.draw(lambda prompts, rows: drawing(prompts, [seed + row for row in rows], settings), progress)
    after_drawing = time.perf_counter()
    readings: Readings = {name: pictures.read(network, progress) for name, network in scorer.networks.items()}
    parts: dict[str, list[bool] | None] = {"all": None}
    if split is not None:
        parts |= {"with": list(split), "without": [not chosen for chosen in split]}
    n = len(pictures.prompts)
    return {
        "scores": {part: scorer.scores(readings, pictures.prompts, chosen) for part, chosen in parts.items()},
        "counts": {part: n if chosen is None else sum(chosen) for part, chosen in parts.items()},
        "seconds": {
            "pictures_drawn": drawn,
            "drawing": round(after_drawing - started, 3),
            "reading": round(time.perf_counter() - after_drawing, 3),
        },
    }


def write_down(pictures: ImageSet, record: dict[str, Any]) -> None:
    """scores.json, and a grid of the first pictures; they stand in prompts.txt in this order."""
    write_json(pictures.folder / "scores.json", record)
    shown = pictures.first(SHOWN) / 255
    rows = [
        (f"{start + 1} to {min(start + COLUMNS, len(shown))}", shown[start : start + COLUMNS])
        for start in range(0, len(shown), COLUMNS)
    ]
    captions = [pictures.prompts[i : min(i + COLUMNS, len(shown))] for i in range(0, len(shown), COLUMNS)]
    grid(rows, (), pictures.folder / "pictures.png", row_captions=captions)


def write_pictures(pictures: ImageSet, folder: Path, progress: Progress = lambda *_: None) -> None:
    """Every picture as a PNG named {prompt}_{number:06}.png, the names that T2I-CompBench's evaluators read.

    A prompt's slashes become blanks, and it is cut to LONGEST_NAME bytes: file systems want it so.
    """
    done = 0
    for shard, rows in enumerate(pictures.shards):
        for row, image in zip(rows, pictures.pictures(shard), strict=True):
            words = pictures.prompts[row].replace("/", " ").encode()[:LONGEST_NAME].decode(errors="ignore")
            with replacing(folder / f"{words}_{row:06}.png") as beside:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(beside, "PNG")
            done += 1
        progress("writing pictures", done, len(pictures.prompts))
