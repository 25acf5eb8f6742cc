"""Checkpoints: weights, optimizer, EMA and state of a run, from which it continues to the bit. safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import new_folder, read_json, sha256, write_json

from .progress import Log, no_log
from .storage.tensors import is_whole, load_tensors, save_tensors
from .student.build import unet_from_config

TENSOR_FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors")


def steps_of(folder: Path) -> list[int]:
    """Steps of the whole checkpoints under folder/checkpoints, in order."""
    states = (folder / "checkpoints").glob("step-*/state.json")
    return sorted(int(state.parent.name.removeprefix("step-")) for state in states)


def place(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08}"


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel, scaler: Any, state: dict[str, Any]
) -> None:
    """Writes folder/checkpoints/step-N. Raises RcdeployError, and writes nothing, when a weight is not finite."""
    named = dict(model.named_parameters())
    for name, value in named.items():
        if not value.isfinite().all():
            raise RcdeployError(f"{name} is not finite at step {state['step']}")
    moments: dict[str, Tensor] = {}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = torch.as_tensor(value)
    with new_folder(place(folder, state["step"])) as beside:
        save_tensors(beside / "model.safetensors", dict(model.state_dict()))
        save_tensors(beside / "optimizer.safetensors", moments)
        save_tensors(beside / "ema.safetensors", dict(zip(trained_names(model), ema.shadow_params, strict=True)))
        scaling = scaler.state_dict() if scaler is not None else None
        digests = {name: sha256(beside / name) for name in TENSOR_FILES}
        saved = {**state, "ema_steps": ema.optimization_step, "scaler": scaling, "files": digests}
        write_json(beside / "state.json", {**saved, "digest": _digest(saved)})


def _digest(state: dict[str, Any]) -> str:
    """sha256 of a state as JSON reads it back."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(state)), sort_keys=True).encode()).hexdigest()


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of step N, naming the file; None when it is whole.

    Checkpoints of rcdeploy 0.1 have no digests: of them only lengths are checked.
    """
    where = place(folder, step)
    try:
        state = read_json(where / "state.json")
    except RcdeployError as error:
        return error.message
    if not isinstance(state, dict):
        return f"{where / 'state.json'} is not a JSON object"
    recorded = state.pop("digest", None)
    if recorded is not None and recorded != _digest(state):
        return f"{where / 'state.json'} has changed since it was written"
    for name in TENSOR_FILES:
        if not is_whole(where / name):
            return f"{where / name} is missing or truncated"
        if "files" in state and sha256(where / name) != state["files"].get(name):
            return f"{where / name} has changed since it was written"
    return None


def newest_whole(folder: Path, log: Log = no_log) -> int | None:
    """The step of the newest checkpoint that is whole; None when there is no checkpoint at all.

    Logs each damaged one that is passed over. Raises RcdeployError when all are damaged.
    """
    problems = []
    for step in reversed(steps_of(folder)):
        problem = damage(folder, step)
        if problem is None:
            return step
        log(f"{problem}: continuing from an earlier checkpoint")
        problems.append(problem)
    if problems:
        raise RcdeployError(
            f"{folder} has no checkpoint that is whole",
            fix="Bring one back from a copy, or start over with --restart (which removes the run).",
            errors=problems,
        )
    return None


def trained_names(model: nn.Module) -> list[str]:
    """The parameters that EMA follows: the network's, without a student's projectors or a decoder's critic."""
    return [name for name, _ in model.named_parameters() if not name.startswith(("projectors.", "critic."))]


def load(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel, scaler: Any
) -> dict[str, Any]:
    """Restores everything to step N and returns its state. Raises RcdeployError, naming a file that is broken."""
    where = place(folder, step)
    state: dict[str, Any] = read_json(where / "state.json")
    model.load_state_dict(load_tensors(where / "model.safetensors"))
    moments = load_tensors(where / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in moments]
        # the step count too: a fused AdamW keeps it where the weights are
        optimizer.state[parameter] = {key: moments[f"{name}/{key}"].to(parameter.device) for key in keys}
    averages = load_tensors(where / "ema.safetensors")
    for name, shadow in zip(trained_names(model), ema.shadow_params, strict=True):
        shadow.copy_(averages[name])
    ema.optimization_step = state["ema_steps"]
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return state


def find(folder: Path, at: str) -> int:
    """Resolve "best", "last" or a number to a step. Raises RcdeployError that lists the checkpoints."""
    steps = steps_of(folder)
    listed = ", ".join(map(str, steps)) or "none"
    if at == "last" and steps:
        return steps[-1]
    if at == "best" and steps:
        best = read_json(place(folder, steps[-1]) / "state.json")["best"]
        if best and best[1] in steps:
            return int(best[1])
        raise RcdeployError(
            f"{folder} has no best checkpoint: the run was not evaluated during training",
            fix=f"The checkpoints are: {listed}.",
        )
    if at.isdigit() and int(at) in steps:
        return int(at)
    raise RcdeployError(f"{folder} has no checkpoint {at!r}", fix=f"Give best, last, or one of the steps {listed}.")


def ema_unet(folder: Path, step: int, config: dict[str, Any]) -> UNet2DConditionModel:
    """The student of step N with its EMA weights, fp32, in evaluation mode. config: its UNet's."""
    unet = unet_from_config(config)
    averages = load_tensors(place(folder, step) / "ema.safetensors")
    unet.load_state_dict({name.removeprefix("unet."): value for name, value in averages.items()})
    return unet.requires_grad_(False).eval()


def ema_digest(folder: Path, step: int) -> str:
    """sha256 of the EMA weights of step N."""
    return sha256(place(folder, step) / "ema.safetensors")


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and the best."""
    for step in steps_of(folder)[:-keep]:
        if step != best:
            shutil.rmtree(place(folder, step), ignore_errors=True)
