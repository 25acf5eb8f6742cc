"""Sweep files and score files: their keys, read and checked without importing torch.

A sweep file names a base recipe, what varies (rows, a grid over recipe keys, seeds), a score file, and a paper's own
values for comparison. A score file says which images every trained student generates and which metrics are computed;
many tables share one. Paths are relative to the file that names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import Field, ValidationError

from rcdeploy_runtime.errors import RcdeployError

from ..evaluate.spec import ON_HUB, EvaluationSpec
from ..model_config import is_hub_name
from ..recipe_section import Section
from ..toml_files import raise_if_any, read_toml, validation_errors

FILE_KEYS = ("judge", "inception", "clip", "vqa", "detector", "reference")
"""keys of a score file that name files or folders"""
SEED_KEYS = ("train.seed", "student.seed", "cache.seed")
"""recipe keys that a seed of a sweep sets; cache.seed not with shared_cache"""
T = TypeVar("T", bound=Section)


class Row(Section):
    name: str = Field(min_length=1, description="name of the row in the table")
    set: dict[str, Any] = Field({}, description="recipe keys, 'section.key' = value")


class Paper(Section):
    source: str = Field(description="which table, of which model, after how many steps")
    columns: list[str] = Field(min_length=1, description="headings of the values")
    rows: dict[str, list[float]] = Field(description="values by the label of a row of our table")


class SweepFile(Section):
    title: str = Field(description="heading of the table")
    recipe: str = Field(description="the base recipe")
    score: str = Field(description="the score file")
    seeds: list[int] = Field(
        [0],
        min_length=1,
        description="each sets train.seed, student.seed, cache.seed, and the start noise of the scored images",
    )
    shared_cache: bool = Field(
        False, description="true: seeds share one cache and the start noise; cheaper, and spreads come out too narrow"
    )
    set: dict[str, Any] = Field({}, description="recipe keys that all rows share")
    rows: list[Row] = Field([], description="named variants; each is crossed with the grid")
    grid: dict[str, list[Any]] = Field({}, description="recipe key -> its values, all combinations")
    paper: Paper | None = Field(None, description="the paper's own values")
    x: str | None = Field(None, description="a recipe key of the grid: the plot then has curves over it")
    baseline: str | None = Field(None, description="label of the variant that others are tested against; the first")
    note: str = Field(min_length=1, description="what the table does not show")
    prepare: str | None = Field(
        None, description="the command that makes the files it needs; printed when one is missing, never executed"
    )

    @property
    def seed_keys(self) -> tuple[str, ...]:
        """The recipe keys that a seed sets."""
        return tuple(key for key in SEED_KEYS if not (self.shared_cache and key == "cache.seed"))


class PromptSet(Section):
    include: list[str] = Field([], description="words (regular expressions) of which a prompt has at least one")
    exclude: list[str] = Field([], description="words (regular expressions) that no prompt has")


class ScoreFile(Section):
    captions: list[str] = Field(min_length=1, description="files of prompts, as prompts.paired of a recipe")
    column: str | None = Field(None, description="column of csv, jsonl and parquet files; detected by default")
    count: int = Field(gt=0, description="sampled prompts")
    repeat: int = Field(1, gt=0, description="images of each; T2I-CompBench takes 10")
    seed: int = Field(0, ge=0, description="seed of the sampled prompts and, with the sweep's seed, of the start noise")
    num_inference_steps: int = Field(25, gt=0, description="DDIM steps per image")
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance scale")
    batch_size: int = Field(16, gt=0, description="images sampled at once")
    shard_size: int | None = Field(None, gt=0, description="images per file; by default 16 files or more")
    resize: int | None = Field(None, ge=0, description="image size to score at, as rcdeploy evaluate --resize")
    keep_pictures: bool = Field(True, description="false: only the outputs of the networks are kept")
    metrics: list[Literal["fid", "is", "clip", "vqa", "judge", "compbench"]] = Field(["judge"], min_length=1)
    judge: str | None = Field(None, description="folder of the judge; by default the one beside the teacher")
    inception: str | None = Field(None, description="weights of Inception-v3, for fid and is")
    clip: str | None = Field(None, description="a CLIP model's folder or name on the hub; the paper's by default")
    vqa: str | None = Field(None, description="folder of a BLIP model for question answering, or its name on the hub")
    detector: str | None = Field(None, description="folder of a zero-shot detector, or its name on the hub")
    reference: str | None = Field(None, description="real images or their statistics, for fid")
    allow_few: bool = Field(False, description="compute Frechet distances of however few images")
    prompts: dict[str, PromptSet] = Field({"all": PromptSet()}, description="parts of the prompts, scored apart")
    show: list[str] = Field([], description="metrics in the table ('PART METRIC'), all by default")

    def evaluation_spec(self, default_judge: Path | None = None) -> EvaluationSpec:
        """The same settings as rcdeploy evaluate has them; default_judge: for a file that names none."""
        files = {key: Path(path) for key in FILE_KEYS if (path := getattr(self, key))}
        return EvaluationSpec(
            prompt_files=tuple(map(Path, self.captions)),
            column=self.column,
            count=self.count,
            fewer_is_fine=True,
            repeat=self.repeat,
            seed=self.seed,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            resize=self.resize,
            metrics=tuple(self.metrics),
            allow_few=self.allow_few,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            judge=default_judge,
        ).replace(**files)


def read_sweep(file: Path) -> SweepFile:
    """Raises RcdeployError with everything that is wrong in the file itself; plan.py checks the recipe keys."""
    sweep = _read(file, SweepFile, "sweep")
    errors = [f"{where}: {key} is set by `seeds`" for where, key in _set_keys(sweep) if key in sweep.seed_keys]
    names = [row.name for row in sweep.rows]
    errors += [f"rows: two are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    errors += [f"grid.{key}: needs at least one value" for key, values in sweep.grid.items() if not values]
    if len(set(sweep.seeds)) < len(sweep.seeds):
        errors.append(f"seeds: {sweep.seeds} has one twice")
    if sweep.paper:
        columns = len(sweep.paper.columns)
        rows = sweep.paper.rows.items()
        errors += [f"paper.rows, {r}: {len(v)} values for {columns} columns" for r, v in rows if len(v) != columns]
    if sweep.x and not all(isinstance(value, (int, float)) for value in sweep.grid.get(sweep.x, [""])):
        errors.append(f"x: {sweep.x!r} is no key of the grid with numbers")
    raise_if_any(file, errors)
    return sweep


def _set_keys(sweep: SweepFile) -> Iterator[tuple[str, str]]:
    """(where, recipe key) of everything that the file sets."""
    for where, keys in (("set", sweep.set), ("grid", sweep.grid), *((f"rows, {r.name}", r.set) for r in sweep.rows)):
        for key in keys:
            yield where, key


def read_score(file: Path) -> ScoreFile:
    """With absolute paths. Raises RcdeployError with everything that is wrong in the file, missing files included."""
    score = _read(file, ScoreFile, "score")
    folder = file.resolve().parent
    captions = [str((folder / c).resolve()) for c in score.captions]
    named = {key: path for key in FILE_KEYS if (path := getattr(score, key))}
    on_hub = {key for key in ON_HUB if is_hub_name(named.get(key, ""), folder)}
    files = {key: str((folder / path).resolve()) for key, path in named.items() if key not in on_hub}
    errors = [f"captions: {c} does not exist" for c in captions if not Path(c).exists()]
    errors += [f"{key}: {path} does not exist" for key, path in files.items() if not Path(path).exists()]
    errors += [
        f"show: {metric!r} begins with none of the parts {', '.join(score.prompts)}"
        for metric in score.show
        if not any(metric.startswith(f"{name} ") for name in score.prompts)
    ]
    raise_if_any(file, errors)
    return score.model_copy(update={"captions": captions, **files})


def _read(file: Path, model: type[T], kind: str) -> T:
    data = read_toml(file, f"{kind} file")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        _raise(file, validation_errors(error, model))


def _raise(file: Path, errors: list[str]) -> NoReturn:
    raise_if_any(file, errors)
    raise RcdeployError(f"{file} is not valid")
