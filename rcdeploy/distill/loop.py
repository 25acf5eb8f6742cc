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

from ..evaluate.metrics import FIGURES
from ..progress import Progress
from ..recipe import Recipe
from . import outcome
from .features import FeatureTaps
from .run import Run, build_run, make_batches
from .scoring import Scoring
from .step import losses


class Stopped(Exception):
    """Ctrl-C or SIGTERM: a checkpoint was written, and the same command goes on from it."""


def distill(recipe: Recipe, folder: Path, progress: Progress, say: Callable[[str], None]) -> Run:
    """Runs the recipe in `folder`, or goes on with it there.

    Raises RcdeployError for what the user can mend, NaN and divergence included (the last good checkpoint stays), and
    Stopped when it was told to stop.
    """
    run = build_run(recipe, folder, progress, say)
    if run.is_main:
        outcome.begin(run)
    if recipe.evaluate.every and recipe.evaluate.score != "validation":
        run.drawn["scoring"] = Scoring.open(run, progress, say)
    if recipe.train.trackers:
        run.accelerator.init_trackers("tracking")
    _loop(run, progress)
    run.accelerator.wait_for_everyone()
    if run.is_main:
        say("writing the student's pipeline")
        outcome.finish(run)
        if run.best:
            say(f"best step: {run.best[1]:,} ({FIGURES[recipe.evaluate.score]} {run.best[0]:.6g})")
    run.accelerator.end_training()
    return run


def _loop(run: Run, progress: Progress) -> None:
    train, evaluate, accelerator = run.recipe.train, run.recipe.evaluate, run.accelerator
    accumulation, rate = train.accumulation(accelerator.num_processes), _learning_rate(run.recipe)
    micro = train.global_batch_size // (accumulation * accelerator.num_processes)
    batches = make_batches(run)
    teacher_taps = FeatureTaps(run.teacher.unet, [t.teacher for t in run.taps])
    timed, started = run.step, time.monotonic()

    with _asked_to_stop(accelerator.num_processes == 1) as stop:
        while run.step < train.max_steps:
            for group in run.optimizer.param_groups:
                group["lr"] = rate(run.step)
            for part in range(accumulation):
                first = (part * accelerator.num_processes + accelerator.process_index) * micro
                batch = batches.make(run.step, range(first, first + micro))
                last = part == accumulation - 1
                with nullcontext() if last else accelerator.no_sync(run.wrapped):
                    # the prepared model casts by itself; the teacher's weights are in their own precision already
                    total, each = losses(run.wrapped, run.teacher, teacher_taps, batch, run.recipe.loss)
                    accelerator.backward(total / accumulation)
                for name, value in each.items():  # sums stay on the device: no step waits for a number
                    run.sums[name] = run.sums.get(name, torch.zeros_like(value)) + value / accumulation
            norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), train.max_grad_norm)
            run.sums["grad_norm"] = run.sums.get("grad_norm", torch.zeros_like(norm)) + norm
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.ema.step(run.model.unet.parameters())
            run.step += 1

            end = run.step == train.max_steps
            if run.step % train.log_every == 0 or end:
                means = {name: value / (run.step - run.since) for name, value in run.mean_sums().items()}
                figures = {name: float(f"{value:.6g}") for name, value in means.items()}
                seconds = (time.monotonic() - started) / max(1, run.step - timed)
                run.sums, run.since, timed, started = {}, run.step, run.step, time.monotonic()
                accelerator.log(figures, step=run.step)
                outcome.log(run, {**figures, "lr": rate(run.step - 1), "seconds_per_step": round(seconds, 4)})
            progress("distill", run.step, train.max_steps, run.latest)
            looked = evaluate.every and (run.step % evaluate.every == 0 or end)
            if looked:
                outcome.look(run, batches)
                accelerator.wait_for_everyone()
                timed, started = run.step, time.monotonic()
            # after a look too: the best step must have a checkpoint to keep
            if run.step % train.checkpoint_every == 0 or looked or end or stop:
                run.save_checkpoint()
            if stop:
                raise Stopped(f"stopped after step {run.step:,}; the same command goes on from there")


@contextmanager
def _asked_to_stop(catch: bool) -> Iterator[list[int]]:
    """Yields a list that is no longer empty once Ctrl-C or SIGTERM came: the step is finished first, then saved.

    A second Ctrl-C stops at once. Not with several processes: they would stop at different steps.
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
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: somebody embeds the loop, and stops it in their own way
        yield signals
        return
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _learning_rate(recipe: Recipe) -> Callable[[int], float]:
    """diffusers' schedules as a function of the step: nothing to save, nothing to restore."""
    train = recipe.train
    carrier = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(
        train.lr_schedule, carrier, num_warmup_steps=train.warmup_steps, num_training_steps=train.max_steps
    )
    factor = schedule.lr_lambdas[0]
    return lambda step: train.learning_rate * float(factor(step))
