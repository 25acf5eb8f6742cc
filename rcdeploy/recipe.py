"""The sections and keys of a recipe, with their types, bounds and defaults (the paper's: section 4.2, supplement A-D).

recipe_file.py reads them from TOML. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from rcdeploy_runtime.sampling_defaults import SamplingDefaults

from .recipe_section import (
    MAX_COUNT,
    MAX_RESOLUTION,
    MAX_SHARD_SIZE,
    MAX_STEPS,
    BatchSize,
    Fraction,
    InferenceSteps,
    Section,
    Seed,
    Steps,
    Weight,
)
from .recipe_stages import Decoder, Distill, Export, FewSteps
from .recipe_student import Student
from .student.spec import StudentSpec

WORDNET = "wordnet"
"""entry of prompts.paired and prompts.pool in place of a file: prompts made from WordNet's nouns"""
MAX_PROMPTS_PER_NOUN = 2000
"""different prompts that templates can make of a noun"""


class Teacher(Section):
    path: str = Field(description="diffusers folder of the teacher, or its name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit of the teacher on the hub")


class Prompts(Section):
    paired: list[str] = Field(
        min_length=1,
        description="files of the prompts that get a cached latent, or 'wordnet' for prompts made from its nouns "
        "(paper, section 4.1: 212K captions)",
    )
    pool: list[str] = Field(
        [],
        description="files of further prompts that are used as text only, one built prompt pool, or 'wordnet' (paper, "
        "section 4.1: 20M captions)",
    )
    per_noun: int = Field(
        128,
        gt=0,
        le=MAX_PROMPTS_PER_NOUN,
        description="prompts per noun where a source is 'wordnet' (paper, section A)",
    )
    column: str | None = Field(
        None, description="caption column of csv, jsonl and parquet files; detected when it is not given"
    )
    paired_count: int | None = Field(
        None,
        gt=0,
        le=MAX_COUNT,
        description="number of paired prompts, sampled with cache.seed; all of them by default",
    )
    paired_exclude: list[str] = Field(
        [],
        description="words (regular expressions) that no paired prompt may contain; prompts.pool is not filtered "
        "(paper, Table 2: animals)",
    )

    @property
    def files(self) -> dict[str, list[str]]:
        """Entries of `paired` and `pool` that are paths, by key."""
        return {key: [entry for entry in getattr(self, key) if entry != WORDNET] for key in ("paired", "pool")}


class Cache(Section):
    source: Literal["teacher", "real"] = Field(
        "teacher", description="where x_0 comes from: latents sampled by the teacher, or encoded real images"
    )
    images: str | None = Field(None, description="folder of real images with metadata.csv (source = 'real')")
    folder: str | None = Field(None, description="folder of the latent cache; by default caches/NAME-DIGEST")
    num_inference_steps: InferenceSteps = Field(25, description="DDIM steps for each teacher sample (paper, section K)")
    guidance_scale: float = Field(
        7.5, ge=0, description="classifier-free guidance scale of the teacher samples (paper, section K)"
    )
    resolution: int | None = Field(
        None,
        gt=0,
        le=MAX_RESOLUTION,
        description="height and width of the images in pixels; the teacher's native size by default",
    )
    batch_size: BatchSize = Field(
        16, description="images sampled at once; an unfinished cache goes on with the value it was started with"
    )
    shard_size: int = Field(1024, gt=0, le=MAX_SHARD_SIZE, description="latents per file")
    seed: Seed = Field(0, description="seed of the choice of paired prompts and of the teacher's start noise")


class Conditioning(Section):
    probability: Literal["none", "exponential", "mirrored-exponential", "linear", "sigmoid", "constant"] = Field(
        "exponential",
        description="p(t): probability that a pair's text is replaced by a random one (paper, equation 3 and Table C)",
    )
    rate: float = Field(5.0, gt=0, description="lambda of the exponentials (authors' code)")
    steepness: float = Field(20.0, gt=0, description="slope of the sigmoid over t/T (paper, Table C)")
    centre: float = Field(0.7, description="t/T at which the sigmoid is 0.5 (paper, Table C)")
    constant: Fraction = Field(0.5, description="p(t) of 'constant' (paper, Table C: 0.5 and 1)")
    null_probability: Fraction = Field(
        0.1, description="share of conditions replaced by the null condition afterwards (paper, section 4.2)"
    )


class Loss(Section):
    output: Weight = Field(1.0, description="weight of output distillation (paper, equation 1 and section 4.2)")
    feature: Weight = Field(1.0, description="weight of feature distillation (paper, equation 2 and section 4.2)")
    task: Weight = Field(0.0, description="weight of the denoising loss on true pairs (BK-SDM: 1; the paper: 0)")
    frequency: Weight = Field(0.0, description="weight of the frequency loss (SLIM: 0.1; paper, section I)")

    @model_validator(mode="after")
    def _something(self) -> Loss:
        if self.output == self.feature == self.task == self.frequency == 0:
            raise ValueError("all weights are 0: nothing would be learnt")
        return self


class Train(Section):
    max_steps: Steps = Field(
        400_000,
        description="training steps (paper, section K: 400,000 from random weights, 125,000 from the teacher's)",
    )
    global_batch_size: BatchSize = Field(256, description="samples per update, over all processes (paper, section 4.2)")
    micro_batch_size: BatchSize | None = Field(
        None,
        description="samples per process in one forward pass; the rest is accumulated. All at once by default",
    )
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of AdamW (paper, section 4.2)")
    lr_schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = Field(
        "constant", description="learning rate over the run, as diffusers' schedule of that name"
    )
    warmup_steps: int = Field(0, ge=0, le=MAX_STEPS, description="updates in which the learning rate rises from 0")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient (BK-SDM)")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the mean squared gradient (BK-SDM)")
    adam_eps: float = Field(1e-8, gt=0, description="AdamW's term in the denominator (BK-SDM)")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled weight decay (BK-SDM)")
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which the gradient is clipped (BK-SDM)")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "fp16", description="precision of the forward and backward pass; without a GPU training runs in fp32"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower steps"
    )
    compile: bool = Field(
        False,
        description="compile teacher and student (torch.compile) for distillation: minutes before the first step, then "
        "faster steps; without a GPU it needs a C++ compiler",
    )
    ema_decay: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="decay of the EMA weights, warmed up as min(decay, (1 + s) / (10 + s)) at step s (authors' code); "
        "0 for the weights themselves, without a copy",
    )
    seed: Seed = Field(0, description="seed of everything that training samples: rows, t, noise, random texts")
    checkpoint_every: Steps = Field(1000, description="updates between checkpoints")
    keep_checkpoints: Steps = Field(2, description="number of latest checkpoints to keep, besides the best one")
    log_every: Steps = Field(20, description="updates between lines of metrics.jsonl and the trackers")
    text_cache_gb: float = Field(
        2.0, ge=0, description="memory in GB for the paired prompts' embeddings, which are then computed only once"
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="where metrics go besides metrics.jsonl"
    )


class Evaluate(Section):
    every: int = Field(
        25_000,
        ge=0,
        le=MAX_STEPS,
        description="updates between evaluations and sample grids; 0 for none (paper, section K: 25,000)",
    )
    score: Literal["validation", "fid", "clip", "judge"] = Field(
        "validation",
        description="what the best step is chosen by: validation loss, FID or CLIP score (the paper's scores), or the "
        "accuracy of the judge beside the teacher",
    )
    keep: Literal["last", "best"] = Field("last", description="the step whose EMA weights become pipeline/")
    prompts: list[str] = Field([], description="prompts of the sample grid; random ones of the pool by default")
    prompt_files: list[str] = Field(
        [], description="files of the prompts that are scored; the paired prompts by default"
    )
    count: int = Field(
        1000,
        ge=0,
        le=MAX_COUNT,
        description="scored images, of prompts sampled with evaluate.seed; 0 for one image of each prompt",
    )
    inception: str | None = Field(None, description="Inception-v3 weights in .safetensors, for FID and IS")
    reference: str | None = Field(None, description="folder of real images, or their statistics, for FID")
    clip: str | None = Field(
        None,
        description="folder of a CLIP model, or its name on the hub, for the CLIP score; the paper's ViT-g/14 by "
        "default where score = 'clip'",
    )
    num_inference_steps: InferenceSteps = Field(
        25, description="DDIM steps per image of the grid and of the score (paper, section K)"
    )
    guidance_scale: float = Field(
        7.5, ge=0, description="classifier-free guidance scale of the grid and of scored images (paper, section K)"
    )
    seed: Seed = Field(0, description="seed of the scored prompts, their start noise and the validation set")
    validation_size: BatchSize = Field(
        64, description="noised latents in the validation set, the same ones at every evaluation"
    )


class Recipe(Section):
    name: str = Field(
        min_length=1,
        max_length=100,
        pattern=r"^\w[\w .+-]*$",
        description="name of the run and of its folder (letters, digits, and _ - . + or blanks inside); by default the "
        "recipe's file name",
    )
    teacher: Teacher
    student: Student = Student()
    prompts: Prompts
    cache: Cache = Cache()
    conditioning: Conditioning = Conditioning()
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    distill: Distill = Distill()
    few_steps: FewSteps | None = None
    decoder: Decoder | None = None
    export: Export | None = None

    @property
    def student_sampling(self) -> SamplingDefaults:
        """How the distilled student is sampled: as [evaluate] says; without guidance where one scale is folded in."""
        folded = self.distill.guidance_scale is not None and not self.distill.takes_guidance_scale
        return SamplingDefaults(
            num_inference_steps=self.evaluate.num_inference_steps,
            guidance_scale=1.0 if folded else self.evaluate.guidance_scale,
        )

    @property
    def student_spec(self) -> StudentSpec:
        """The rule that makes the student of the teacher. Raises RcdeployError for an unknown name."""
        return replace(self.student.spec, guidance_embedding=self.distill.takes_guidance_scale)

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
    "distill": Distill,
    "few_steps": FewSteps,
    "decoder": Decoder,
    "export": Export,
}
STAGES = ("few_steps", "decoder", "export")
"""Sections of the stages after distillation; a recipe without one has no such stage."""
PATHS = {("teacher", "path"), ("prompts", "paired"), ("prompts", "pool"), ("cache", "images"), ("cache", "folder")}
PATHS |= {("evaluate", key) for key in ("prompt_files", "inception", "reference", "clip")}
HUB_NAMES = {("teacher", "path"), ("evaluate", "clip")}
"""those of PATHS that may be a name on the hub instead"""


def digest(data: Any) -> str:
    """The first 16 hex digits of the sha256 of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
