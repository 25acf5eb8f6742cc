"""From a sweep file to variants and trials, and what of them is done."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256

from ..evaluate.spec import METRICS, EvaluationSpec
from ..hub import local_folder
from ..judge_files import judge_of, weights_digest
from ..prompts.patterns import WholeWordPatterns
from ..prompts.readers import files_of
from ..recipe import Recipe, digest
from ..recipe_file import anchor_paths, load_recipe
from ..recipe_section import MAX_SEED
from ..toml_files import raise_if_any
from .spec import ScoreFile, SweepFile, read_score, read_sweep
from .trial import ContentDigests, Trial, relative_paths, student_trial, teacher_trial

RUNS = Path("runs/sweeps")
NOISE_SEED_STRIDE = 2**24
"""image i of sweep seed s starts from the noise of score.seed + s * stride + i: no two seeds share an image's noise"""
NETWORKS_FILE = "read.json"
"""in an evaluation folder: network -> its weights' digest, for those whose outputs for all images are there"""


@dataclass(frozen=True)
class Variant:
    """A row of the table: its label, the recipe keys that it sets, a trial for each seed."""

    label: str
    set: dict[str, Any]
    trials: list[Trial]


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep. known: by a trial's key, its entry in the JSON of an earlier table."""

    name: str
    file: Path
    sweep: SweepFile
    score: ScoreFile
    variants: list[Variant]
    teacher: Trial
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def trials(self) -> list[Trial]:
        """Each once: the teacher, then seed by seed, so that every variant has a result early."""
        by_seed = itertools.chain.from_iterable(zip(*(variant.trials for variant in self.variants), strict=True))
        return list({trial.key: trial for trial in [self.teacher, *by_seed]}.values())

    @property
    def baseline(self) -> Variant:
        """The variant that the others are tested against."""
        return next((v for v in self.variants if v.label == self.sweep.baseline), self.variants[0])

    def trial(self, key: str) -> Trial:
        """key: whole, or its first digits as --dry-run lists them. Raises RcdeployError when no trial has it."""
        for trial in self.trials:
            if trial.key.startswith(key):
                return trial
        raise RcdeployError(f"{self.file} has no trial {key}", fix="`rcdeploy sweep FILE --dry-run` lists them.")

    def known_result(self, trial: Trial) -> dict[str, Any] | None:
        """The trial's entry in an earlier table."""
        return self.known.get(trial.key) or self.known.get(trial.path_key)

    @property
    def to_run(self) -> list[Trial]:
        """The trials that no earlier table has: done or not, they are trained and scored here."""
        return [trial for trial in self.trials if self.known_result(trial) is None]

    @cached_property
    def evaluation_spec(self) -> EvaluationSpec:
        return self.score.evaluation_spec(judge_of(Path(self.teacher.recipe.teacher.path)))

    def trial_spec(self, trial: Trial) -> EvaluationSpec:
        """evaluation_spec with the start noise of the trial's seed."""
        return self.evaluation_spec.replace(noise_seed=self.noise_seed(trial))

    def noise_seed(self, trial: Trial) -> int | None:
        """Seed of the first scored image's start noise; None for the score file's own (seed 0, or shared_cache)."""
        if self.sweep.shared_cache or not trial.seed:
            return None
        return (self.score.seed + trial.seed * NOISE_SEED_STRIDE) % (MAX_SEED + 1)

    @cached_property
    def images_digest(self) -> str:
        """A digest of everything that a trial's images depend on beside its weights and its seed."""
        keys = ("column", "count", "seed", "num_inference_steps", "guidance_scale", "resize")
        captions = [sha256(f) for c in self.score.captions for f in files_of(Path(c))]
        repeat = [self.score.repeat] if self.score.repeat > 1 else []  # as before there was this key
        return digest([captions, *(getattr(self.score, key) for key in keys), *repeat])

    @cached_property
    def network_digests(self) -> dict[str, str]:
        """Network -> a digest of its weights, for every network of the score file's metrics."""
        return self._network_identities(_weights_digest)

    @cached_property
    def _network_paths(self) -> dict[str, str]:
        """As network_digests, with the relative paths that version 0.1 wrote in their place."""
        return self._network_identities(lambda path: str(relative_paths(str(path))))

    def _network_identities(self, identity: Callable[[Path], str]) -> dict[str, str]:
        names = dict.fromkeys(METRICS[metric] for metric in self.score.metrics)
        spec = self.evaluation_spec
        paths = {name: [path for part in spec.parts_of(name) if (path := spec.weights_of(part))] for name in names}
        identities = {name: [identity(path) for path in found] for name, found in paths.items() if found}
        return {name: each[0] if len(each) == 1 else digest(each) for name, each in identities.items()}

    @property
    def scored_by(self) -> str:
        """A digest of everything that scores depend on beside a trial's weights; tables that share it compare."""
        return self._scored_by(self.network_digests)

    def is_scored_alike(self, scored_by: str) -> bool:
        """Whether an earlier table's `scored_by` means the same, also when version 0.1 wrote it."""
        return scored_by in (self.scored_by, self._scored_by(self._network_paths))

    def _scored_by(self, networks: dict[str, str]) -> str:
        parts = {name: part.model_dump() for name, part in self.score.prompts.items()}
        return digest([self.images_digest, networks, self.score.metrics, self.score.allow_few, parts])

    def evaluation_folder(self, trial: Trial) -> Path:
        """The folder of the trial's images and of the networks' outputs."""
        noise_seed = self.noise_seed(trial)
        name = self.images_digest if noise_seed is None else digest([self.images_digest, noise_seed])
        return trial.folder / f"evaluation-{name[:8]}"

    def is_done(self, trial: Trial) -> bool:
        if self.known_result(trial) is not None:
            return True
        file = self.evaluation_folder(trial) / NETWORKS_FILE
        if not trial.is_trained() or not file.is_file():
            return False
        stored = read_json(file)
        paths = self._network_paths
        return all(stored.get(name) in (value, paths[name]) for name, value in self.network_digests.items())

    def trial_names(self) -> dict[str, str]:
        """What people call each trial, by its key; labels of variants that share it are joined."""
        labels: dict[str, list[str]] = {self.teacher.key: ["teacher"]}
        for variant in self.variants:
            for trial in variant.trials:
                labels.setdefault(trial.key, []).append(variant.label)
        seeds = {trial.key: "" if trial.is_teacher else f", seed {trial.seed}" for trial in self.trials}
        return {key: " = ".join(names) + seeds[key] for key, names in labels.items()}


def load_plan(
    file: Path,
    *,
    recipe: Path | None = None,
    score: Path | None = None,
    overrides: Sequence[str] = (),
    runs: Path = RUNS,
    known: Sequence[Path] = (),
) -> Plan:
    """Reads a sweep file and resolves the recipe of every trial.

    Args:
        recipe, score: in place of those that the file names.
        overrides: "section.key=value" for all variants; a variant's own keys win.
        runs: the folder of the trials.
        known: JSONs of earlier tables that have some of the trials; of two that have one the first counts.

    Raises:
        RcdeployError: everything that is wrong in the file and in the recipes; an earlier table scored differently.
    """
    sweep = read_sweep(file)
    folder = file.resolve().parent
    base = recipe or folder / sweep.recipe
    score_file = read_score(score or folder / sweep.score)
    for part in score_file.prompts.values():
        WholeWordPatterns([*part.include, *part.exclude])
    errors: list[str] = []
    contents = ContentDigests()
    variants: list[Variant] = []
    for label, keys in _variations(sweep):
        trials = []
        for seed in sweep.seeds:
            settings = [*_overrides(sweep.set, folder, seed), *overrides, *_overrides(keys, folder, seed)]
            resolved = _load(base, [*settings, *(f"{key}={seed}" for key in sweep.seed_keys)], errors)
            if resolved is not None:
                if resolved.cache.folder and not sweep.shared_cache:
                    resolved = _with_own_cache(resolved, seed)
                trials.append(student_trial(resolved, seed, runs, contents))
        variants.append(Variant(label, keys, trials))
    labels = [variant.label for variant in variants]
    errors += [f"two variants are called {label!r}" for label in sorted({x for x in labels if labels.count(x) > 1})]
    if sweep.paper:
        rows = [row for row in sweep.paper.rows if row not in (*labels, "teacher")]
        errors += [f"paper.rows: no variant is called {row!r}" for row in rows]
    if sweep.baseline and sweep.baseline not in labels:
        errors.append(f"baseline: no variant is called {sweep.baseline!r}")
    fix = "The comments at their heads describe what a sweep file and its recipe need."
    if sweep.prepare:
        fix = f"Files that do not exist yet are made by: {sweep.prepare}"
    raise_if_any(file, list(dict.fromkeys(errors)), fix)
    teacher = teacher_trial(variants[0].trials[0].recipe, runs, contents)
    plan = Plan(file.stem, file, sweep, score_file, variants, teacher)
    for table in known:
        plan.known.update(_known_results(table, plan) | plan.known)
    return plan


def _known_results(table: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Entries of a table's JSON by trial key. Raises RcdeployError when it is no table, or was scored differently."""
    content = read_json(table)
    try:
        results: dict[str, dict[str, Any]] = {row["key"]: row for line in content["lines"] for row in line["cells"]}
        scored_by = content["scored_by"]
    except (KeyError, TypeError):
        raise RcdeployError(f"{table} is no table of rcdeploy sweep", fix="--known takes its .json.") from None
    if not plan.is_scored_alike(scored_by):
        raise RcdeployError(f"{table} was scored differently", fix="Its captions, settings or weights differ.")
    return results


def _weights_digest(path: Path) -> str:
    """sha256 of the weights of a network, which is fetched if `path` is its name on the hub."""
    if path.is_file():
        return sha256(path)
    return weights_digest(local_folder(path))


def _variations(sweep: SweepFile) -> list[tuple[str, dict[str, Any]]]:
    """(label, keys): every row with every combination of the grid."""
    rows: list[tuple[list[str], dict[str, Any]]] = [([row.name], row.set) for row in sweep.rows] or [([], {})]
    combinations = list(itertools.product(*sweep.grid.values()))
    variations = []
    for names, keys in rows:
        for values in combinations:
            labels = [*names, *(grid_label(k, v) for k, v in zip(sweep.grid, values, strict=True))]
            settings = keys | dict(zip(sweep.grid, values, strict=True))
            variations.append((", ".join(labels) or "the recipe", settings))
    return variations


def grid_label(key: str, value: Any) -> str:
    """The part of a variant's label that names a value of the grid."""
    return value if isinstance(value, str) else f"{key.partition('.')[2].replace('_', ' ')} {json.dumps(value)}"


def _overrides(keys: Mapping[str, Any], folder: Path, seed: int) -> list[str]:
    """Recipe keys as load_recipe takes them; paths are relative to the sweep file's folder. JSON values are TOML."""
    overrides = []
    for path, value in keys.items():
        section, _, key = path.partition(".")
        data = {section: {key: _with_seed(value, seed)}}
        anchor_paths(data, folder)
        overrides.append(f"{path}={json.dumps(data[section][key])}")
    return overrides


def _with_own_cache(recipe: Recipe, seed: int) -> Recipe:
    """A recipe that names its latent cache, with a folder of the seed's beside that one; seed 0 keeps it."""
    folder = f"{recipe.cache.folder}-{seed}" if seed else recipe.cache.folder
    return recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"folder": folder})})


def _with_seed(value: Any, seed: int) -> Any:
    """{seed} in a text, or in a list of them, replaced: for files that go with one seed's latent cache."""
    if isinstance(value, list):
        return [_with_seed(v, seed) for v in value]
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def _load(base: Path, overrides: list[str], errors: list[str]) -> Recipe | None:
    """The recipe; None after adding what is wrong with it to `errors`."""
    try:
        return load_recipe(base, overrides)
    except RcdeployError as error:
        errors += error.errors or [error.message]
        return None
