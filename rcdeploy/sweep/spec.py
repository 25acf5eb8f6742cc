"""What a sweep file and a score file may say. Read and checked without importing torch.

A sweep file names a base recipe, what varies (rows, a grid over recipe keys, seeds), a score file, and a paper's own
figures to stand beside. A score file says which pictures every finished student draws and what reads them; many tables
share one. Paths start at the file that names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ..recipe import Section
from ..toml_files import raise_if_any, read_toml, validation_errors

WEIGHTS = ("judge", "inception", "clip", "vqa", "reference")
"""keys of a score file that name what lies on disk"""
SEED_KEYS = ("train.seed", "student.seed")
"""what a seed of a sweep sets; caches keep their own, so that all seeds share one"""


class Row(Section):
    name: str = Field(min_length=1, description="what the table calls it")
    set: dict[str, Any] = Field({}, description="recipe keys, 'section.key' = value")


class Paper(Section):
    source: str = Field(description="which table, of which model, after how many steps")
    columns: list[str] = Field(min_length=1, description="headings of the figures")
    rows: dict[str, list[float]] = Field(description="figures by the label of a line of our table")


class SweepFile(Section):
    title: str = Field(description="the heading of the table")
    recipe: str = Field(description="the base recipe")
    score: str = Field(description="the score file")
    seeds: list[int] = Field([0], min_length=1, description="each sets train.seed and student.seed")
    set: dict[str, Any] = Field({}, description="recipe keys that all lines share")
    rows: list[Row] = Field([], description="named variations; each is crossed with the grid")
    grid: dict[str, list[Any]] = Field({}, description="recipe key -> its values, all combinations")
    paper: Paper | None = Field(None, description="the paper's own figures")
    x: str | None = Field(None, description="a recipe key: the picture then has curves over it")
    note: str = Field(min_length=1, description="what the table does not show")


class PromptSet(Section):
    include: list[str] = Field([], description="words (regular expressions) of which a prompt has at least one")
    exclude: list[str] = Field([], description="words (regular expressions) that no prompt has")


class ScoreFile(Section):
    captions: list[str] = Field(min_length=1, description="files of prompts, as prompts.paired of a recipe")
    column: str | None = Field(None, description="column of csv, jsonl and parquet files; found when not named")
    count: int = Field(gt=0, description="pictures, one a prompt; prompts are drawn at random")
    seed: int = Field(0, ge=0, description="of the drawing of prompts, and of the noise")
    num_inference_steps: int = Field(25, gt=0)
    guidance_scale: float = Field(7.5, ge=0)
    batch_size: int = Field(16, gt=0, description="pictures drawn at once")
    shard_size: int = Field(256, gt=0, description="pictures a file; whole files are kept when a cell is stopped")
    resize: int | None = Field(None, ge=0, description="edge to score at, as rcdeploy evaluate --resize")
    keep_pictures: bool = Field(True, description="False: what the networks read in them is kept alone")
    metrics: list[Literal["fid", "is", "clip", "vqa", "judge"]] = Field(["judge"], min_length=1)
    judge: str | None = Field(None, description="folder of the judge; by default the one beside the teacher")
    inception: str | None = Field(None, description="weights of Inception-v3, for fid and is")
    clip: str | None = Field(None, description="folder of a CLIP model")
    vqa: str | None = Field(None, description="folder of a BLIP model that answers questions")
    reference: str | None = Field(None, description="real pictures or their statistics, for fid")
    allow_few: bool = Field(False, description="Frechet distances of however few pictures")
    prompts: dict[str, PromptSet] = Field({"all": PromptSet()}, description="parts of the prompts, scored apart")
    show: list[str] = Field([], description="figures in the table ('PART FIGURE'), all by default")


def read_sweep(file: Path) -> SweepFile:
    """Raises RcdeployError with everything that is wrong in the file itself; recipe keys are checked by plan.py."""
    read: SweepFile = _read(file, SweepFile, "sweep")
    errors = [
        f"{where}: {key} is set by `seeds`"
        for where, keys in (("set", read.set), ("grid", read.grid), *((f"rows, {r.name}", r.set) for r in read.rows))
        for key in keys
        if key in SEED_KEYS
    ]
    names = [row.name for row in read.rows]
    errors += [f"rows: two are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    errors += [f"grid.{key}: needs at least one value" for key, values in read.grid.items() if not values]
    if len(set(read.seeds)) < len(read.seeds):
        errors.append(f"seeds: {read.seeds} has one twice")
    if read.paper:
        wide = len(read.paper.columns)
        rows = read.paper.rows.items()
        errors += [f"paper.rows, {r}: {len(v)} figures for {wide} columns" for r, v in rows if len(v) != wide]
    if read.x and not all(isinstance(value, (int, float)) for value in read.grid.get(read.x, [""])):
        errors.append(f"x: {read.x!r} is no key of the grid with numbers")
    raise_if_any(file, errors)
    return read


def read_score(file: Path) -> ScoreFile:
    """With absolute paths. Raises RcdeployError with everything that is wrong in the file, missing files included."""
    read: ScoreFile = _read(file, ScoreFile, "score")
    folder = file.resolve().parent
    captions = [str((folder / c).resolve()) for c in read.captions]
    named = {k: str((folder / path).resolve()) for k in WEIGHTS if (path := getattr(read, k))}
    errors = [f"captions: {c} is not there" for c in captions if not Path(c).exists()]
    errors += [f"{key}: {path} is not there" for key, path in named.items() if not Path(path).exists()]
    errors += [
        f"show: {figure!r} begins with none of the parts {', '.join(read.prompts)}"
        for figure in read.show
        if not any(figure.startswith(f"{name} ") for name in read.prompts)
    ]
    raise_if_any(file, errors)
    return read.model_copy(update={"captions": captions, **named})


def _read(file: Path, model: type[Section], kind: str) -> Any:
    data = read_toml(file, f"{kind} file")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise_if_any(file, validation_errors(error, model))
