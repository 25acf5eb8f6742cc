"""The settings of an evaluation: prompts, sampling, metrics, and the files that the metrics need. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rcdeploy_runtime.errors import RcdeployError

from ..model_config import is_hub_name
from ..recipe import Evaluate
from ..recipe_checks import INCEPTION_FEATURES
from .compbench_prompts import networks_needed

NetworkName = Literal["inception", "clip", "judge", "vqa", "detector", "compbench"]
COMPBENCH: Literal["compbench"] = "compbench"
"""is computed if it is named: it is for T2I-CompBench's prompts alone"""
METRICS: dict[str, NetworkName] = {
    "fid": "inception",
    "is": "inception",
    "clip": "clip",
    "vqa": "vqa",
    "judge": "judge",
    COMPBENCH: COMPBENCH,
}
"""metric -> the network whose outputs it is computed from; compbench's are vqa, clip and detector together"""
ON_HUB: tuple[NetworkName, ...] = ("clip", "vqa", "detector")
"""networks that may be named as on the hub"""
LOWER_IS_BETTER = ("validation", "fid", "judge.frechet_distance")
SCORE_KEYS = {"validation": "validation", "fid": "fid", "clip": "clip", "judge": "judge.all"}
"""recipe.evaluate.score -> the key in metrics.jsonl"""
MIN_IMAGES_FOR_STABLE_FID = 10_000
"""below, the FID depends more on the number of images than on their content"""
MAX_SHARD_SIZE = 256
MIN_SHARDS = 16
DEFAULT_CLIP = "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
"""on the hub, in transformers' layout; of the paper's architecture"""
INCEPTION_CHECKPOINT = "pt_inception-2015-12-05-6726825d.pth"
HOW_TO_GET_INCEPTION = (
    f"The weights are the file {INCEPTION_CHECKPOINT} of github.com/mseitzer/pytorch-fid (releases, fid_weights). "
    "Convert it to inception.safetensors once, where you trust it:\n"
    'python -c "import torch, safetensors.torch as s; '
    f"s.save_file(torch.load('{INCEPTION_CHECKPOINT}', weights_only=True), 'inception.safetensors')\"\n"
    "and name that with --inception inception.safetensors, or as evaluate.inception in a recipe."
)


def is_better(metric: str, new: float, old: float) -> bool:
    """Whether `new` is a better value of this metric than `old`."""
    return new < old if metric in LOWER_IS_BETTER else new > old


@dataclass(frozen=True)
class MissingInput:
    """A file that a metric needs and nobody named."""

    description: str
    fix: str | None = None


_MISSING: dict[NetworkName, MissingInput] = {
    "inception": MissingInput("the weights of Inception-v3: --inception inception.safetensors", HOW_TO_GET_INCEPTION),
    "clip": MissingInput(
        f"a CLIP model: --clip with a folder in transformers' layout, or its name on the hub (paper: {DEFAULT_CLIP})"
    ),
    "vqa": MissingInput("a BLIP model for question answering: --vqa with a folder in transformers' layout"),
    "detector": MissingInput(
        "a zero-shot detector: --detector with a folder in transformers' layout, or its name on the hub"
    ),
    "judge": MissingInput("a judge: a folder judge/ in the teacher's folder, or --judge with one"),
}


@dataclass(frozen=True)
class EvaluationSpec:
    """Settings of an evaluation, whoever asks for it: the command, a sweep, or a training run.

    Args:
        prompt_files: files or folders of captions. column: for csv, jsonl and parquet files; None to detect it.
        count: prompts to sample with `seed`, 0 for all; with `fewer_is_fine` a file may hold fewer.
        include, exclude: regular expressions for whole words; of `include` one must match, of `exclude` none may.
        repeat: images per prompt.
        seed: of the sampled prompts. noise_seed: image i starts from the noise of noise_seed + i; None for seed.
        num_inference_steps, guidance_scale, sampler: of sampling; by default DDIM, or the model's own.
        resize: image size in pixels to score at; None for 256 of 512 pixels as in the paper; 0 for the native size.
        metrics: keys of METRICS; empty for all whose files are named.
        inception, clip, vqa, detector, judge: weights or folders of the networks; of those ON_HUB also names. Without
            one, the metric "clip" takes DEFAULT_CLIP if `metrics` names it. reference: real images or their statistics,
            for FID. noun_phrases: name or folder of a spaCy pipeline, for vqa and compbench; None for en_core_web_sm.
        allow_few: compute Frechet distances of however few images.
        batch_size: images sampled at once. shard_size: images per file; None to choose by the number of images.
    """

    prompt_files: tuple[Path, ...] = ()
    column: str | None = None
    count: int = 1000
    fewer_is_fine: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    repeat: int = 1
    seed: int = 0
    noise_seed: int | None = None
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "ddim"
    resize: int | None = None
    metrics: tuple[str, ...] = ()
    inception: Path | None = None
    clip: Path | None = None
    vqa: Path | None = None
    detector: Path | None = None
    judge: Path | None = None
    reference: Path | None = None
    noun_phrases: Path | None = None
    allow_few: bool = False
    batch_size: int = 16
    shard_size: int | None = None

    @classmethod
    def of_recipe(cls, section: Evaluate, **settings: Any) -> EvaluationSpec:
        """From the [evaluate] section of a recipe; settings: fields that the section does not have."""

        def path(name: str | None) -> Path | None:
            return Path(name) if name else None

        return cls(
            prompt_files=tuple(map(Path, section.prompt_files)),
            count=section.count,
            fewer_is_fine=True,
            seed=section.seed,
            num_inference_steps=section.num_inference_steps,
            guidance_scale=section.guidance_scale,
            inception=path(section.inception),
            clip=path(section.clip),
            reference=path(section.reference),
        ).replace(**settings)

    def replace(self, **settings: Any) -> EvaluationSpec:
        """A copy with these fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{name: value for name, value in settings.items() if value is not None})

    @property
    def first_noise_seed(self) -> int:
        return self.seed if self.noise_seed is None else self.noise_seed

    @property
    def sampling(self) -> dict[str, Any]:
        """Keyword arguments of the sampling functions; DDIM, their default, is not named, as in old evaluations."""
        sampler = {} if self.sampler == "ddim" else {"sampler": self.sampler}
        return {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale, **sampler}

    def weights_of(self, network: NetworkName) -> Path | None:
        """The weights or the folder of a network, or its name on the hub; None where nobody named one."""
        named: Path | None = getattr(self, network)
        return Path(DEFAULT_CLIP) if named is None and network == "clip" and "clip" in self.metrics else named

    def parts_of(self, network: NetworkName) -> list[NetworkName]:
        """The networks whose weights it needs: itself, or those of the prompt files' categories."""
        if network == COMPBENCH:
            return [cast(NetworkName, name) for name in networks_needed(self.prompt_files)]
        return [network]

    def missing_input(self, metric: str) -> MissingInput | None:
        """The file that this metric still needs; None when it can be computed."""
        for network in self.parts_of(METRICS[metric]):
            if self.weights_of(network) is None:
                return _MISSING[network]
        if metric == "fid" and not self.reference:
            return MissingInput("a reference: --reference with a folder of real images, or their statistics")
        return None

    def selected_metrics(self) -> list[str]:
        """The metrics named, or all that can be computed. Raises RcdeployError that says which files to name."""
        for metric in self.metrics:
            if metric not in METRICS:
                raise RcdeployError(f"there is no metric {metric!r}", fix=f"Choose from {', '.join(METRICS)}.")
            if missing := self.missing_input(metric):
                raise RcdeployError(f"{metric} needs {missing.description}", fix=missing.fix)
        by_default = [metric for metric in METRICS if metric != COMPBENCH]
        selected = list(dict.fromkeys(self.metrics)) or [m for m in by_default if self.missing_input(m) is None]
        if not selected:
            missing_inputs = {metric: self.missing_input(metric) for metric in by_default}
            raise RcdeployError(
                "no metric can be computed: every one of them needs a file",
                fix=HOW_TO_GET_INCEPTION,
                errors=[f"{metric}: {missing.description}" for metric, missing in missing_inputs.items() if missing],
            )
        return selected

    def check_files(self) -> None:
        """Raises RcdeployError for a named file that does not exist."""
        for name in ("clip", "vqa", "detector", "judge", "reference"):
            path = getattr(self, name)
            if path and not path.exists() and not (name in ON_HUB and is_hub_name(str(path))):
                raise RcdeployError(f"--{name} {path}: no such file or folder")
        if self.inception and not self.inception.is_file():
            raise RcdeployError(f"there are no weights of Inception-v3 at {self.inception}", fix=HOW_TO_GET_INCEPTION)

    def check_enough_images(self, counts: Mapping[str, int]) -> list[str]:
        """Remarks on an FID of few images; counts: images of each part that is scored.

        Raises RcdeployError where a covariance would be singular, unless allow_few.
        """
        if "fid" not in self.selected_metrics():
            return []
        part, n = min(counts.items(), key=lambda item: item[1])
        if n <= INCEPTION_FEATURES and not self.allow_few:
            where = "" if part == "all" else f" ({part})"
            raise RcdeployError(
                f"{n:,} images{where} are too few for an FID of {INCEPTION_FEATURES:,} features: "
                "the covariance is singular",
                fix=f"Generate at least {INCEPTION_FEATURES + 1:,} (--count; the paper: 30,000), leave fid out of "
                "--metrics, or accept the value as it is with --allow-few.",
            )
        few = n < MIN_IMAGES_FOR_STABLE_FID
        return [f"FID of {n:,} images: below {MIN_IMAGES_FOR_STABLE_FID:,} it depends on their number"] if few else []

    def image_size(self, native: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in which images are stored and scored. native: the size that the model generates."""
        if self.resize is None:
            return (256, 256) if native == (512, 512) else native
        if self.resize == 0:
            return native
        if self.resize > min(native):
            raise RcdeployError(
                f"--resize {self.resize} would enlarge images of {native[0]}x{native[1]}",
                fix="Give a smaller size, or 0.",
            )
        return self.resize, self.resize

    def images_per_shard(self, count: int) -> int:
        """shard_size, or for `count` images: whole batches, MIN_SHARDS shards or more where the batches allow it.

        An interruption loses at most one shard.
        """
        if self.shard_size:
            return self.shard_size
        batches = math.ceil(min(count / MIN_SHARDS, MAX_SHARD_SIZE) / self.batch_size)
        return max(1, batches) * self.batch_size


def known_evaluate_section(recipe: Mapping[str, Any]) -> Evaluate:
    """[evaluate] of a recipe in a manifest, keys of other versions ignored; the defaults where it has none."""
    section = recipe.get("evaluate", {})
    return Evaluate.model_validate({key: value for key, value in section.items() if key in Evaluate.model_fields})


def split_counts(count: int, split: Sequence[bool] | None) -> dict[str, int]:
    """Images of each part that is scored: "all", and "with" and "without" where prompts are split."""
    if split is None:
        return {"all": count}
    return {"all": count, "with": sum(split), "without": count - sum(split)}
