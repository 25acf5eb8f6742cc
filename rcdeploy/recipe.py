"""Recipes: one TOML file says everything a distillation does. Read, checked and resolved without importing torch.

Paths in a recipe start at the recipe's own folder; paths given with --set at the current one. Defaults are the paper's
(its section 4.2 and supplement A-D).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rcdeploy_runtime.errors import RcdeployError

from .model_config import is_hub_name
from .recipe_checks import cross_errors, nearest, said
from .student.spec import StudentSpec, find_student

WORDNET = "wordnet"
"""entry of prompts.paired and prompts.pool in place of a file: prompts made from WordNet's nouns"""
MAX_PROMPTS_PER_NOUN = 2000
"""different prompts that templates can make of a noun"""

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Teacher(Section):
    path: str = Field(description="diffusers folder of the teacher, or its name on the hub")
    revision: str | None = Field(None, description="revision on the hub")


class Student(Section):
    name: str = Field("c-micro", description="a name that `rcdeploy students` lists")
    width: float | None = Field(None, gt=0, le=1, description="a channel student of this width instead of `name`")
    init: Literal["random", "teacher", "sliced"] | None = Field(
        None, description="first weights; by default the paper's: teacher for block students, random for channel ones"
    )
    seed: int = Field(0, ge=0, description="seed of random first weights")

    @property
    def first_weights(self) -> Literal["random", "teacher", "sliced"]:
        if self.init:
            return self.init
        return "random" if self.spec.family == "channel" else "teacher"

    @property
    def spec(self) -> StudentSpec:
        """The rule that makes the student of a teacher. Raises RcdeployError for an unknown name."""
        return StudentSpec(width=self.width) if self.width else find_student(self.name)


class Prompts(Section):
    paired: list[str] = Field(
        min_length=1, description="files of prompts that get a cached latent; 'wordnet': made from its nouns"
    )
    pool: list[str] = Field([], description="files (or one built pool) of further prompts, text only; or 'wordnet'")
    per_noun: int = Field(
        128, gt=0, le=MAX_PROMPTS_PER_NOUN, description="prompts made for each noun where it says 'wordnet'"
    )
    column: str | None = Field(None, description="column of csv, jsonl and parquet files; found when not named")
    paired_count: int | None = Field(None, gt=0, description="so many of the paired prompts, drawn by cache.seed")
    paired_exclude: list[str] = Field([], description="words (regular expressions) that no paired prompt may contain")

    @property
    def files(self) -> dict[str, list[str]]:
        """Entries of `paired` and `pool` that are paths, by key."""
        return {key: [entry for entry in getattr(self, key) if entry != WORDNET] for key in ("paired", "pool")}


class Cache(Section):
    source: Literal["teacher", "real"] = Field(
        "teacher", description="latents sampled by the teacher, or real pictures"
    )
    images: str | None = Field(None, description="folder of real pictures with metadata.csv (source = 'real')")
    folder: str | None = Field(None, description="where the latents are kept; by default caches/NAME-DIGEST")
    num_inference_steps: int = Field(25, gt=0, description="DDIM steps of the teacher")
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance of the teacher")
    resolution: int | None = Field(
        None, gt=0, description="edge of the pictures in pixels; the teacher's own by default"
    )
    batch_size: int = Field(16, gt=0, description="pictures sampled at once; a cache begun with one goes on with it")
    shard_size: int = Field(1024, gt=0, description="latents a file")
    seed: int = Field(0, ge=0)


class Conditioning(Section):
    probability: Literal["none", "exponential", "mirrored-exponential", "linear", "sigmoid", "constant"] = Field(
        "exponential", description="p(t), with which a pair's text is replaced by a random one (Table C)"
    )
    rate: float = Field(5.0, gt=0, description="lambda of the exponentials")
    steepness: float = Field(20.0, gt=0, description="of the sigmoid")
    centre: float = Field(0.7, description="of the sigmoid, as a fraction of the timesteps")
    constant: Fraction = Field(0.5, description="p of 'constant'")
    null_probability: Fraction = Field(0.1, description="conditions replaced by the null condition, afterwards")


class Loss(Section):
    output: Weight = Field(1.0, description="equation 1")
    feature: Weight = Field(1.0, description="equation 2")
    task: Weight = Field(0.0, description="denoising loss on true pairs (BK-SDM: 1; the paper: 0)")

    @model_validator(mode="after")
    def _something(self) -> Loss:
        if self.output == self.feature == self.task == 0:
            raise ValueError("all three weights are 0: nothing would be learnt")
        return self


class Train(Section):
    max_steps: int = Field(400_000, gt=0)
    global_batch_size: int = Field(256, gt=0, description="samples per update, over all processes")
    micro_batch_size: int | None = Field(None, gt=0, description="samples per process at once; all by default")
    learning_rate: float = Field(5e-5, gt=0)
    lr_schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("fp16", description="'no' on processors without a GPU")
    gradient_checkpointing: bool = False
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="warmed up as min(decay, (1 + s) / (10 + s))")
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, gt=0)
    keep_checkpoints: int = Field(2, gt=0, description="the last so many, and the best")
    log_every: int = Field(20, gt=0)
    text_cache_gb: float = Field(2.0, ge=0, description="memory for embeddings of the paired prompts, computed once")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]

    def accumulation(self, num_processes: int) -> int:
        """gradient_accumulation_steps = global_batch_size / (micro_batch_size x num_processes)."""
        micro = self.micro_batch_size or math.ceil(self.global_batch_size / num_processes)
        steps, rest = divmod(self.global_batch_size, micro * num_processes)
        if rest or not steps:
            raise RcdeployError(
                f"train.global_batch_size = {self.global_batch_size} is no multiple of micro_batch_size x processes = "
                f"{micro} x {num_processes}",
                fix="Change one of the three.",
            )
        return steps


class Evaluate(Section):
    every: int = Field(25_000, ge=0, description="steps between evaluations and grids of pictures; 0: never")
    score: Literal["validation", "fid", "judge"] = Field(
        "validation", description="what makes a step the best one: validation loss, FID (the paper), judge's accuracy"
    )
    keep: Literal["last", "best"] = Field("last", description="the step whose EMA weights become pipeline/")
    prompts: list[str] = Field([], description="of the grid; the first of the pool by default")
    prompt_files: list[str] = Field([], description="of the scored pictures; the paired prompts by default")
    count: int = Field(1000, ge=0, description="scored pictures, of prompts drawn by the seed; 0: one of each prompt")
    inception: str | None = Field(None, description="weights of Inception-v3 in .safetensors, for FID and IS")
    reference: str | None = Field(None, description="folder of real pictures, or their statistics, for FID")
    clip: str | None = Field(None, description="folder of a CLIP model, for `rcdeploy evaluate`")
    num_inference_steps: int = Field(25, gt=0)
    guidance_scale: float = Field(7.5, ge=0)
    seed: int = Field(0, ge=0)
    validation_size: int = Field(64, gt=0, description="noised latents of the validation loss, always the same ones")


class Recipe(Section):
    name: str
    teacher: Teacher
    student: Student = Student()
    prompts: Prompts
    cache: Cache = Cache()
    conditioning: Conditioning = Conditioning()
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as JSON."""
        return self.model_dump(mode="json")


SECTIONS: dict[str, type[Section]] = {
    "teacher": Teacher,
    "student": Student,
    "prompts": Prompts,
    "cache": Cache,
    "conditioning": Conditioning,
    "loss": Loss,
    "train": Train,
    "evaluate": Evaluate,
}
PATHS = {("teacher", "path"), ("prompts", "paired"), ("prompts", "pool"), ("cache", "images"), ("cache", "folder")}
PATHS |= {("evaluate", key) for key in ("prompt_files", "inception", "reference", "clip")}


def load_recipe(file: Path, overrides: list[str] | None = None, *, check_files: bool = True) -> Recipe:
    """Reads and checks a recipe.

    overrides: "section.key=value", the value as TOML (a bare word is a string). check_files: teacher and prompt files
    must be there. Raises RcdeployError that lists everything that is wrong at once.
    """
    data = read_toml(file, "recipe", fix="`rcdeploy recipes` lists the shipped ones.")
    anchor(data, file.resolve().parent)
    errors: list[str] = []
    for override in overrides or []:
        _override(data, override, errors)
    data.setdefault("name", file.stem)
    recipe = _validate(data, errors, check_files)
    refuse(file, errors)
    assert recipe is not None
    return recipe


def read_toml(file: Path, kind: str, fix: str | None = None) -> dict[str, Any]:
    """kind: what an error calls it. fix: where others are, when it is not there. Raises RcdeployError."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.toml")], 1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        raise RcdeployError(f"there is no {kind} {file}{hint}", fix=fix) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RcdeployError(f"{file} cannot be read as TOML: {error}") from None


def refuse(file: Path, errors: list[str], fix: str | None = None) -> None:
    """Raises RcdeployError that lists `errors`, if there are any."""
    if errors:
        listed = "\n".join(f"  • {e}" for e in errors)
        raise RcdeployError(f"{file} has {len(errors)} error{'s' * (len(errors) > 1)}:\n{listed}", fix=fix)


def anchor(data: dict[str, Any], folder: Path) -> None:
    """Makes relative paths absolute, from `folder`; a teacher's name on the hub and "wordnet" stay as they are."""

    def anchored(value: Any) -> Any:
        if isinstance(value, list):
            return [anchored(v) for v in value]
        if not isinstance(value, str) or Path(value).is_absolute() or value == WORDNET:
            return value
        return str((folder / value).resolve())

    for section, key in PATHS:
        if not isinstance(data.get(section), dict) or key not in data[section]:
            continue
        value = data[section][key]
        if (section, key) == ("teacher", "path") and isinstance(value, str) and is_hub_name(value, folder):
            continue
        data[section][key] = anchored(value)


def _override(data: dict[str, Any], override: str, errors: list[str]) -> None:
    path, _, text = override.partition("=")
    section, _, key = path.strip().partition(".")
    if not text or not key:
        errors.append(f"--set {override}: write it as section.key=value")
        return
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if section in SECTIONS and isinstance(data.setdefault(section, {}), dict):
        data[section][key] = value
        if (section, key) in PATHS:
            anchor(data, Path.cwd())
    else:
        errors.append(f"--set {override}: there is no section {section!r}{nearest(section, SECTIONS)}")


def _validate(data: dict[str, Any], errors: list[str], check_files: bool) -> Recipe | None:
    parsed: dict[str, Any] = {}
    for section in data:
        if section not in SECTIONS and section != "name":
            errors.append(f"[{section}]: no such section{nearest(section, SECTIONS)}")
    for section, model in SECTIONS.items():
        if section not in data and section in ("teacher", "prompts"):
            errors.append(f"[{section}]: this section is needed")
            continue
        try:
            parsed[section] = model.model_validate(data.get(section, {}))
        except ValidationError as error:
            errors += [said(section, model, e) for e in error.errors()]
    errors += cross_errors(parsed, check_files)
    return None if errors else Recipe(name=str(data["name"]), **parsed)


def portable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe for other machines: of absolute paths the last name alone, the rest as it stands."""

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(v) for v in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {
        section: {key: shown(value) if (section, key) in PATHS else value for key, value in keys.items()}
        if isinstance(keys, dict)
        else keys
        for section, keys in recipe.items()
    }


def digest(data: Any) -> str:
    """A name for JSON data: sha256, 16 hex digits."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def shipped() -> list[Path]:
    """The recipes that come with rcdeploy: beside the checkout, or inside the installed package."""
    here = Path(__file__).parent
    for folder in (here.parent / "recipes", here / "shipped_recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.toml"))
    return []
