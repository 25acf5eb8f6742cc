"""The folder that a run leaves: its manifest, and pipeline/, the EMA student in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from rcdeploy_runtime.files import new_folder, read_json, write_json
from rcdeploy_runtime.manifest import Manifest

from .. import checkpoint
from ..evaluate.spec import SCORE_KEYS
from ..machine import describe
from ..model_config import trimmed_model_index
from ..model_files import copy_component
from ..run_folder import RunFacts
from ..student.build import unet_from_config
from .run import Run
from .train_state import TrainState


def write_run_manifest(run: Run, state: TrainState) -> None:
    """Writes the manifest of a run that begins or continues, and the resolved recipe."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "recipe.json", run.recipe.resolved())
    _manifest(run, _facts(run, state)).write(run.folder)


def _facts(run: Run, state: TrainState) -> RunFacts:
    return RunFacts(
        student=run.recipe.student.label,
        init=run.recipe.student.first_weights,
        steps=state.step,
        cache_folder=str(run.cache.folder),
        machine=describe(),
        sampling=run.sampling,
    )


def _manifest(run: Run, facts: RunFacts) -> Manifest:
    return Manifest(
        kind="run",
        recipe=run.recipe.resolved(),
        teacher=run.teacher.identity,
        noise_schedule={k: v for k, v in run.schedule.config.items() if not k.startswith("_")},
        latents=run.cache.manifest.latents,
        made_from=[{"kind": kind, "sha256": v} for kind, v in run.sources.items() if kind != "teacher"],
        facts=facts.as_json(),
    )


@contextmanager
def ema_weights(run: Run) -> Iterator[torch.nn.Module]:
    """The student's UNet with its EMA weights, in evaluation mode, for as long as the block runs.

    Nothing runs compiled there: evaluation has other batches than training, and each would be compiled anew.
    """
    parameters = list(run.model.unet.parameters())
    run.ema.store(parameters)
    run.ema.copy_to(parameters)
    run.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield run.model.unet
    finally:
        run.ema.restore(parameters)
        run.model.train()


def plain_copy(run: Run, unet: torch.nn.Module) -> UNet2DConditionModel:
    """A copy of the student without hooks or wrappers."""
    copy = unet_from_config(run.student_config)
    copy.load_state_dict(unet.state_dict())
    return copy.eval()


def _final_student(run: Run, state: TrainState) -> tuple[UNet2DConditionModel, int]:
    """The EMA student of the last step, or of the best one (evaluate.keep), and which step that is."""
    if run.recipe.evaluate.keep == "best" and state.best:
        step = state.best[1]
        return checkpoint.ema_unet(run.folder, step, run.student_config), step
    with ema_weights(run) as unet:
        return plain_copy(run, unet), state.step


def write_pipeline(run: Run, state: TrainState) -> None:
    """Writes pipeline/ (the student with the teacher's text encoder, VAE and schedule) and the finished manifest."""
    student, step = _final_student(run, state)
    with new_folder(run.folder / "pipeline") as beside:
        for name in run.teacher.components:
            if name not in ("unet", "scheduler"):
                copy_component(run.teacher.folder, name, beside / name)
            if name.startswith("text_encoder"):
                _load_as_float32(beside / name / "config.json")
        run.schedule.save_pretrained(beside / "scheduler")
        student.register_to_config(_name_or_path="")  # a folder of this machine, where the weights came from
        student.half().save_pretrained(beside / "unet")
        index = read_json(run.teacher.folder / "model_index.json")
        write_json(beside / "model_index.json", trimmed_model_index(index, "DDIMScheduler"))
    best_score, best_step = state.best or (None, None)
    facts = _facts(run, state).finished_with(
        best_step=best_step,
        best_score=best_score,
        score=SCORE_KEYS[run.recipe.evaluate.score],
        pipeline_step=step,
    )
    manifest = _manifest(run, facts)
    manifest.add_files(run.folder, "pipeline")
    manifest.write(run.folder)


def _load_as_float32(config: Path) -> None:
    """transformers 5 loads weights in the precision they are stored in, diffusers in fp32: a pipeline needs one."""
    write_json(config, {**read_json(config), "dtype": "float32"})
