"""From a sweep file to cells: resolved recipes with a seed, each in a folder named after what it depends on.

So a cell that two lines, or two tables, have in common is trained once, and tables made one after another share runs.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.manifest import NAME, Manifest

from ..prompts.patterns import WholeWordPatterns
from ..prompts.readers import files_of
from ..recipe import PATHS, Recipe, digest
from ..recipe_file import anchor_paths, load_recipe
from ..run_folder import CHANGEABLE, read_metrics
from ..toml_files import raise_if_any
from .spec import SEED_KEYS, WEIGHTS, ScoreFile, SweepFile, read_score, read_sweep

RUNS = Path("runs/sweeps")
READ = "read.json"
"""in a folder of pictures: network -> its weights, of those that have read all of them"""


@dataclass(frozen=True)
class Cell:
    key: str
    """16 hex digits: a digest of all that its weights depend on"""
    recipe: Recipe
    seed: int
    folder: Path
    trained: bool = True
    """False: the teacher itself, which is only scored"""

    @property
    def steps(self) -> int:
        return self.recipe.train.max_steps if self.trained else 0

    @property
    def steps_done(self) -> int:
        """As its metrics have it."""
        lines = read_metrics(self.folder)
        return min(lines[-1]["step"], self.steps) if lines else 0

    @property
    def train_seconds(self) -> float:
        """Of all its steps so far, stops and starts left out; the latent cache is not in it."""
        before, seconds = 0, 0.0
        for line in read_metrics(self.folder):
            if "seconds_per_step" in line:
                seconds += (line["step"] - before) * line["seconds_per_step"]
                before = line["step"]
        return seconds

    def is_trained(self) -> bool:
        if not self.trained:
            return True
        return (self.folder / NAME).is_file() and bool(Manifest.read(self.folder, "run").facts.get("finished"))


@dataclass(frozen=True)
class Line:
    """One line of the table: its name, what it sets, a cell for each seed."""

    label: str
    set: dict[str, Any]
    cells: list[Cell]


@dataclass(frozen=True)
class Plan:
    name: str
    file: Path
    spec: SweepFile
    score: ScoreFile
    lines: list[Line]
    teacher: Cell
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    """by a cell's key: what the JSON of an earlier table has of it"""

    @property
    def cells(self) -> list[Cell]:
        """Each once: the teacher, then seed by seed, so that every line has a figure early."""
        by_seed = itertools.chain.from_iterable(zip(*(line.cells for line in self.lines), strict=True))
        return list({cell.key: cell for cell in [self.teacher, *by_seed]}.values())

    def cell(self, key: str) -> Cell:
        """key: whole, or its beginning as --dry-run shows it. Raises RcdeployError when no cell is called so."""
        for cell in self.cells:
            if cell.key.startswith(key):
                return cell
        raise RcdeployError(f"{self.file} has no cell {key}", fix="`rcdeploy sweep FILE --dry-run` lists them.")

    @property
    def to_make(self) -> list[Cell]:
        """The cells that no earlier table has: done or not, they are trained and scored here."""
        return [cell for cell in self.cells if cell.key not in self.known]

    def weights(self) -> dict[str, Path]:
        """What scores the pictures, by the names of WEIGHTS, as far as they are named or there."""
        found = {name: Path(path) for name in WEIGHTS if (path := getattr(self.score, name))}
        beside = Path(self.teacher.recipe.teacher.path) / "judge"
        if beside.is_dir():
            found.setdefault("judge", beside)
        return found

    @cached_property
    def scoring(self) -> str:
        """A digest of all that a cell's pictures depend on, beside its weights."""
        keys = ("column", "count", "seed", "num_inference_steps", "guidance_scale", "resize")
        captions = [sha256(f) for c in self.score.captions for f in files_of(Path(c))]
        return digest([captions, *(getattr(self.score, key) for key in keys)])

    @property
    def scored_by(self) -> str:
        """A digest of all that a cell's scores depend on, beside its weights: tables that have it equal compare."""
        parts = {name: part.model_dump() for name, part in self.score.prompts.items()}
        return digest([self.scoring, self.read_by(), self.score.metrics, self.score.allow_few, parts])

    def pictures(self, cell: Cell) -> Path:
        """The folder of the cell's pictures and of what networks read in them."""
        return cell.folder / f"evaluation-{self.scoring[:8]}"

    def read_by(self) -> dict[str, str]:
        """What a cell's READ file holds when every network that this plan asks for has read its pictures."""
        networks = {"fid": "inception", "is": "inception"}
        weights = self.weights()
        names = dict.fromkeys(networks.get(metric, metric) for metric in self.score.metrics)
        return {name: _near(str(weights[name])) for name in names if name in weights}

    def is_done(self, cell: Cell) -> bool:
        if cell.key in self.known:
            return True
        file = self.pictures(cell) / READ
        return cell.is_trained() and file.is_file() and self.read_by().items() <= read_json(file).items()


def load_plan(
    file: Path,
    *,
    recipe: Path | None = None,
    score: Path | None = None,
    overrides: Sequence[str] = (),
    runs: Path = RUNS,
    known: Sequence[Path] = (),
) -> Plan:
    """recipe, score: instead of those that the file names. overrides: "section.key=value" for all lines, under a line's
    own. known: JSONs of tables that have some of its cells; of two that have one the first counts. Raises RcdeployError
    with everything that is wrong in the file and in the recipes of its lines, and for a table scored in another way.
    """
    spec, folder = read_sweep(file), file.resolve().parent
    base, scoring = recipe or folder / spec.recipe, read_score(score or folder / spec.score)
    errors: list[str] = []
    for part in scoring.prompts.values():
        WholeWordPatterns([*part.include, *part.exclude])
    lines: list[Line] = []
    for label, keys in _variations(spec):
        cells = [_cell(base, [*_said(spec.set, folder), *overrides], _said(keys, folder), s, runs) for s in spec.seeds]
        errors += [e for c in cells if isinstance(c, list) for e in c]
        lines.append(Line(label, keys, [c for c in cells if isinstance(c, Cell)]))
    labels = [line.label for line in lines]
    errors += [f"two lines are called {label!r}" for label in sorted({x for x in labels if labels.count(x) > 1})]
    if spec.paper:
        errors += [f"paper.rows: no line is called {r!r}" for r in spec.paper.rows if r not in (*labels, "teacher")]
    raise_if_any(file, list(dict.fromkeys(errors)), "Their heads say what a sweep file and its recipe need.")
    plan = Plan(file.stem, file, spec, scoring, lines, _teacher(lines[0].cells[0].recipe, runs))
    for table in known:
        plan.known.update(_known(table, plan.scored_by) | plan.known)
    return plan


def _known(table: Path, scored_by: str) -> dict[str, dict[str, Any]]:
    """The cells of a table's JSON by their keys. Raises RcdeployError when it is none, or was scored in another way."""
    made = read_json(table)
    try:
        rows = {row["key"]: row for line in made["lines"] for row in line["cells"]}
        same = made["scored_by"] == scored_by
    except (KeyError, TypeError):
        raise RcdeployError(f"{table} is no table of rcdeploy sweep", fix="--known takes its .json.") from None
    if not same:
        raise RcdeployError(f"{table} was scored in another way", fix="Its captions, settings or weights differ.")
    return rows


def _variations(spec: SweepFile) -> list[tuple[str, dict[str, Any]]]:
    """(label, keys): every row with every combination of the grid."""
    rows: list[tuple[list[str], dict[str, Any]]] = [([row.name], row.set) for row in spec.rows] or [([], {})]
    combinations = list(itertools.product(*spec.grid.values()))
    found = []
    for names, keys in rows:
        for values in combinations:
            labels = [*names, *(label_of(k, v) for k, v in zip(spec.grid, values, strict=True))]
            found.append((", ".join(labels) or "the recipe", keys | dict(zip(spec.grid, values, strict=True))))
    return found


def label_of(key: str, value: Any) -> str:
    """What a value of the grid adds to a line's name."""
    return value if isinstance(value, str) else f"{key.partition('.')[2].replace('_', ' ')} {json.dumps(value)}"


def _said(keys: dict[str, Any], folder: Path) -> list[str]:
    """Recipe keys as load_recipe takes them; paths start at the sweep file's folder. JSON's values are TOML's."""
    said = []
    for path, value in keys.items():
        section, _, key = path.partition(".")
        data = {section: {key: value}}
        anchor_paths(data, folder)
        said.append(f"{path}={json.dumps(data[section][key])}")
    return said


def _cell(base: Path, shared: list[str], own: list[str], seed: int, runs: Path) -> Cell | list[str]:
    """The cell, or what is wrong with its recipe."""
    try:
        recipe = load_recipe(base, [*shared, *own, *(f"{key}={seed}" for key in SEED_KEYS)])
    except RcdeployError as error:
        listed = list(error.errors)
        return [said.removeprefix("--set ") for said in listed] or [error.message]
    key = digest(depends_on(recipe))
    return Cell(key, recipe, seed, runs / f"{recipe.name}-{key[:8]}")


def depends_on(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that its student's weights depend on, defaults left out: a key that a later version adds
    changes no cell's name. Paths start at the current folder, as caches and runs do, so that a tree may be moved.
    """
    ignored = CHANGEABLE - PATHS - {("train", "max_steps")} | {("cache", "folder")}
    return {
        section: {
            key: _near(value) if (section, key) in PATHS else value
            for key, value in keys.items()
            if (section, key) not in ignored
        }
        for section, keys in recipe.model_dump(mode="json", exclude_defaults=True).items()
        if section not in ("name", "evaluate")
    }


def _near(value: Any) -> Any:
    if isinstance(value, list):
        return [_near(v) for v in value]
    return os.path.relpath(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _teacher(recipe: Recipe, runs: Path) -> Cell:
    key = digest([_near(recipe.teacher.path), recipe.teacher.revision])
    return Cell(key, recipe, 0, runs / f"teacher-{key[:8]}", trained=False)
