"""What a run leaves behind beside its checkpoints: manifest, metrics, grids, curves, and the student's pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, read_json, write_json
from rcdeploy_runtime.manifest import Manifest

from .. import checkpoint
from ..diffusion_model import predict
from ..evaluate.metrics import FIGURES, better
from ..machine import describe
from ..model_config import trimmed_model_index
from ..plots import grid, loss_curves
from ..random_streams import GRID, VALIDATION, generator
from ..run_folder import Metrics
from ..sampling import pictures
from .losses import output_loss
from .run import Run
from .step import Batches

COLUMNS = 8
"""pictures in a row of the grid"""
DIVERGED = 20.0
"""a mean loss so many times the lowest one seen is a run gone wrong"""


def begin(run: Run) -> None:
    """Writes the manifest and the resolved recipe; drops metrics of steps that will be done again."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "recipe.json", run.recipe.resolved())
    _manifest(run).write(run.folder)
    run.metrics = Metrics(run.folder, run.step)


def _manifest(run: Run) -> Manifest:
    made_from = [{"kind": k, "sha256": v} for k, v in run.sources.items() if k != "teacher"]
    return Manifest(
        kind="run",
        recipe=run.recipe.resolved(),
        teacher=run.teacher.identity,
        noise_schedule=run.cache.manifest.noise_schedule,
        latents=run.cache.manifest.latents,
        made_from=made_from,
        facts={
            "student": run.recipe.student.name,
            "init": run.recipe.student.first_weights,
            "steps": run.step,
            "cache_folder": str(run.cache.folder),
            "machine": describe(),
        },
    )


def log(run: Run, figures: dict[str, float]) -> None:
    """One line of metrics.jsonl. Raises RcdeployError when the loss is not finite or has run away."""
    run.latest = figures
    loss = figures["loss"]
    if not loss < DIVERGED * run.lowest_loss:  # also true of NaN
        raise RcdeployError(
            f"the run diverged: the loss is {loss:.4g} at step {run.step:,}, and was {run.lowest_loss:.4g} before",
            fix="The last good checkpoint is kept. Try a smaller train.learning_rate, a longer train.warmup_steps, or "
            "mixed_precision = 'bf16' instead of 'fp16'.",
        )
    run.lowest_loss = min(run.lowest_loss, loss)
    if run.metrics:
        run.metrics.add({"step": run.step, **figures})


@contextmanager
def _ema_weights(run: Run) -> Iterator[torch.nn.Module]:
    """The student with its EMA weights, in evaluation mode, for as long as the block runs."""
    parameters = list(run.model.unet.parameters())
    run.ema.store(parameters)
    run.ema.copy_to(parameters)
    run.model.eval()
    try:
        yield run.model.unet
    finally:
        run.ema.restore(parameters)
        run.model.train()


def look(run: Run, batches: Batches) -> None:
    """Figures of the EMA weights, a grid of pictures, the loss curve; remembers the best step.

    Every process must call it: all of them draw the pictures that are scored, the main one does the rest.
    """
    scoring = run.drawn.get("scoring")
    with _ema_weights(run) as unet:
        scores = scoring(run, _as_teacher(run, unet)) if scoring else {}
        if run.is_main:
            figures = {"validation": validation_loss(run, unet, batches), **scores}
            _draw_grid(run, unet)
    if not run.is_main:
        return
    name = FIGURES[run.recipe.evaluate.score]
    if run.best is None or better(name, figures[name], run.best[0]):
        run.best = (figures[name], run.step)
    if run.metrics:
        run.metrics.add({"step": run.step, **figures})
        loss_curves(run.metrics.lines, run.folder / "loss.png", title=f"{run.recipe.name}: distillation losses")
    run.latest = {**run.latest, "validation": figures["validation"], name: figures[name]}


@torch.no_grad()
def validation_loss(run: Run, unet: torch.nn.Module, batches: Batches) -> float:
    """Equation 1 on noised latents that never change, each with a random text of the pool: the harder half."""
    if "validation" not in run.drawn:
        run.drawn["validation"] = _validation_batch(run)
    total, count = 0.0, 0
    for noisy, timesteps, prompts in run.drawn["validation"]:
        condition = run.teacher.encode_prompts(prompts)
        said = predict(run.teacher.unet, noisy.to(run.teacher.dtype), timesteps, condition)
        answer = predict(unet, noisy, timesteps, condition.to(noisy.device, torch.float32))
        total, count = total + output_loss(said, answer).item() * len(prompts), count + len(prompts)
    return float(f"{total / count:.6g}")


def _validation_batch(run: Run) -> list[tuple[Tensor, Tensor, list[str]]]:
    size, T = run.recipe.evaluate.validation_size, int(run.teacher.schedule.config.num_train_timesteps)
    rng, device = generator(run.recipe.evaluate.seed, VALIDATION), run.teacher.device
    rows, prompts = rng.integers(len(run.cache), size=size).tolist(), run.pool.draw(rng, size)
    timesteps = torch.arange(size) * T // size  # evenly over all of them
    x_0 = run.cache.latents(rows)
    noise = torch.from_numpy(rng.standard_normal(x_0.shape, "float32"))
    noisy = run.teacher.schedule.add_noise(x_0, noise, timesteps)
    return [
        (noisy[i : i + 16].to(device), timesteps[i : i + 16].to(device), prompts[i : i + 16])
        for i in range(0, size, 16)
    ]


def _draw_grid(run: Run, unet: torch.nn.Module) -> None:
    evaluate = run.recipe.evaluate
    prompts = evaluate.prompts or run.pool.draw(generator(evaluate.seed, GRID), COLUMNS)
    settings: dict[str, Any] = {
        "seed": evaluate.seed,
        "stream": GRID,
        "resolution": run.recipe.cache.resolution,
        "num_inference_steps": evaluate.num_inference_steps,
        "guidance_scale": evaluate.guidance_scale,
    }
    if "teacher" not in run.drawn:
        run.drawn["teacher"] = pictures(run.teacher, prompts, **settings)
    drawn = pictures(run.teacher, prompts, unet=_as_teacher(run, unet), **settings)
    rows = [("teacher", run.drawn["teacher"]), (f"student, step {run.step:,}", drawn)]
    path = run.folder / "samples" / f"step-{run.step:08}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, prompts, path)
    shutil.copyfile(path, run.folder / "samples" / "latest.png")


def _as_teacher(run: Run, unet: torch.nn.Module) -> torch.nn.Module:
    """The student's weights in the teacher's precision, in which conditions are made."""
    if run.teacher.dtype == torch.float32:
        return unet
    return _student(run, unet).to(run.teacher.device, run.teacher.dtype)


def _student(run: Run, unet: torch.nn.Module) -> UNet2DConditionModel:
    """A copy of the student by itself, without hooks or wrappers."""
    copy = UNet2DConditionModel.from_config(run.student_config)
    copy.load_state_dict(unet.state_dict())
    return copy.eval()


def _kept_student(run: Run) -> tuple[UNet2DConditionModel, int]:
    """The student with its EMA weights of the last step, or of the best one, and which step that is."""
    if run.recipe.evaluate.keep == "best" and run.best:
        return checkpoint.ema_unet(run.folder, run.best[1], run.student_config), run.best[1]
    with _ema_weights(run) as unet:
        return _student(run, unet), run.step


def finish(run: Run) -> None:
    """pipeline/: the EMA student with the teacher's text encoder, VAE and schedule, as diffusers reads it."""
    student, step = _kept_student(run)
    with new_folder(run.folder / "pipeline") as beside:
        for name in ("text_encoder", "tokenizer", "vae"):
            shutil.copytree(run.teacher.folder / name, beside / name)
        _load_as_float(beside / "text_encoder" / "config.json")
        run.teacher.schedule.save_pretrained(beside / "scheduler")
        student.half().save_pretrained(beside / "unet")
        index = read_json(run.teacher.folder / "model_index.json")
        write_json(beside / "model_index.json", trimmed_model_index(index, "DDIMScheduler"))
    manifest = _manifest(run)
    score, best_step = run.best or (None, None)
    manifest.facts |= {"best_step": best_step, "best_score": score, "score": FIGURES[run.recipe.evaluate.score]}
    manifest.facts |= {"pipeline_step": step, "finished": True}
    manifest.add_files(run.folder, "pipeline")
    manifest.write(run.folder)


def _load_as_float(config: Path) -> None:
    """transformers 5 loads weights in the precision they are stored in, diffusers in fp32: one pipeline wants one."""
    write_json(config, {**read_json(config), "dtype": "float32"})
