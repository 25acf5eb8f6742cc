"""The distillation loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from ..evaluate.spec import SCORE_KEYS
from ..progress import Log, Progress
from ..recipe import Recipe, Train
from ..recipe_stages import Decoder
from ..run_folder import MetricsFile, check_recipe, exclusive
from .build_run import build_run
from .distillation import Distillation
from .pipeline import write_pipeline, write_run_manifest
from .run import Run, Stage
from .step import optimizer_step
from .train_state import TrainState
from .validation import Validator, check_score_weights


class Stopped(Exception):
    """Ctrl-C or SIGTERM: a checkpoint was written, and the same command continues from it."""


def distill(recipe: Recipe, folder: Path, progress: Progress, log: Log, stage: Stage | None = None) -> TrainState:
    """Runs the recipe's training in `folder`, or continues it there; returns what was reached.

    stage: distillation by default, or a stage that follows it.

    Raises:
        RcdeployError: for bad input, non-finite values and divergence (the last good checkpoint stays), and when
            another process is at work in the folder.
        Stopped: on Ctrl-C and SIGTERM.
    """
    with exclusive(folder):
        return _distill(recipe, folder, progress, log, stage or Distillation())


def _distill(recipe: Recipe, folder: Path, progress: Progress, log: Log, stage: Stage) -> TrainState:
    check_recipe(folder, recipe, stage.section)
    check_score_weights(recipe)
    run = build_run(recipe, folder, progress, log, stage)
    state = run.load_checkpoint(log)
    run.accelerator.wait_for_everyone()
    metrics_file = None
    if run.is_main:
        if state.step:
            log(f"continuing from step {state.step:,}")
        write_run_manifest(run, state)
        metrics_file = MetricsFile(folder, state.step)
    validator = Validator(run, metrics_file, progress, log)
    if run.train.trackers:
        run.accelerator.init_trackers("tracking")
    _train(run, state, validator, progress)
    run.accelerator.wait_for_everyone()
    if run.is_main:
        log("writing the student's pipeline")
        write_pipeline(run, state)
        if state.best:
            log(f"best step: {state.best[1]:,} ({SCORE_KEYS[recipe.evaluate.score]} {state.best[0]:.6g})")
    run.accelerator.end_training()
    return state


def _train(run: Run, state: TrainState, validator: Validator, progress: Progress) -> None:
    train = run.train
    accelerator = run.accelerator
    learning_rate = learning_rate_schedule(train)
    parts = run.accumulation_steps
    micro_batch_size = train.global_batch_size // (parts * accelerator.num_processes)
    timer = StepTimer(state.step)

    with stop_signals(accelerator.num_processes == 1) as signals:
        while state.step < train.max_steps:
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(state.step)
            for part in range(parts):
                first = (part * accelerator.num_processes + accelerator.process_index) * micro_batch_size
                is_last_part = part == parts - 1
                with nullcontext() if is_last_part else accelerator.no_sync(run.wrapped):
                    loss, losses = run.objective.loss(state.step, range(first, first + micro_batch_size))
                    accelerator.backward(loss / parts)
                state.add(losses, weight=1 / parts)
            grad_norm = optimizer_step(
                run.model, run.optimizer, run.ema, train.max_grad_norm, accelerator.clip_grad_norm_
            )
            state.add({"grad_norm": grad_norm})
            state.step += 1

            is_last_step = state.step == train.max_steps
            if state.step % train.log_every == 0 or is_last_step:
                metrics = state.close_window(state.reduced_sums(run.reduce))
                accelerator.log(metrics, step=state.step)
                if validator.metrics_file:
                    timing = {"lr": learning_rate(state.step - 1), "seconds_per_step": timer.lap(state.step)}
                    validator.metrics_file.add({"step": state.step, **metrics, **timing})
                    state.metrics = {**metrics, **timing}
            progress(run.stage.name, state.step, train.max_steps, state.metrics)
            every = run.recipe.evaluate.every
            evaluates = bool(every) and (state.step % every == 0 or is_last_step)
            if evaluates:
                validator.evaluate(state)
                accelerator.wait_for_everyone()
                timer.restart(state.step)
            # after an evaluation too: the best step needs a checkpoint to keep
            if state.step % train.checkpoint_every == 0 or evaluates or is_last_step or signals:
                if validator.metrics_file:
                    validator.metrics_file.sync()
                run.save_checkpoint(state)
            if signals:
                raise Stopped(f"stopped after step {state.step:,}; the same command continues from there")


class StepTimer:
    """Seconds per step since the last log entry, evaluations left out."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step = step
        self._start = time.monotonic()

    def lap(self, step: int) -> float:
        seconds = (time.monotonic() - self._start) / max(1, step - self._step)
        self.restart(step)
        return round(seconds, 4)


@contextmanager
def stop_signals(catch: bool) -> Iterator[list[int]]:
    """Yields a list that is no longer empty once Ctrl-C or SIGTERM has come: the step is finished first, then saved.

    A second Ctrl-C stops at once. Not caught with several processes: they would stop at different steps.
    """
    signals: list[int] = []
    if not catch:
        yield signals
        return

    def note(number: int, _frame: Any) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    try:
        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever embeds the loop stops it in their own way
        yield signals
        return
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def learning_rate_schedule(train: Train | Decoder) -> Callable[[int], float]:
    """diffusers' learning rate schedules as a function of the step: nothing to save, nothing to restore."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(
        train.lr_schedule, optimizer, num_warmup_steps=train.warmup_steps, num_training_steps=train.max_steps
    )
    factor = schedule.lr_lambdas[0]
    return lambda step: train.learning_rate * float(factor(step))
