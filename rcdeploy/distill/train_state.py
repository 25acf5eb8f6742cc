"""The training state: what a run has reached so far, saved in each checkpoint's state.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rcdeploy_runtime.errors import RcdeployError

DIVERGENCE_FACTOR = 20.0
"""A mean loss this many times the lowest one so far means that the run has diverged."""


@dataclass
class TrainState:
    """step: updates done. best: the best value of evaluate.score and its step. lowest_loss: of the logged means.

    window_start: the last logged step. sums: of losses and gradient norm over the steps since then; they stay on the
    device, so that no step waits for a number. metrics: the latest logged ones, for the progress bar (not saved).
    """

    step: int = 0
    best: tuple[float, int] | None = None
    lowest_loss: float = float("inf")
    window_start: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Adds a step's losses (or a part of them, by its weight) to the running sums."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value * weight

    def reduced_sums(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The sums as means over processes. reduce: accelerate's, a collective: every process must call this."""
        if not self.sums:
            return {}
        stacked = reduce(torch.stack([value.float() for value in self.sums.values()]))
        return dict(zip(self.sums, stacked.tolist(), strict=True))

    def close_window(self, sums: Mapping[str, float], section: str = "train") -> dict[str, float]:
        """Means over the steps since the last logged one; a new window begins. section: the recipe's, for the message.

        Raises RcdeployError when the loss is not finite or has diverged.
        """
        steps = self.step - self.window_start
        self.metrics = {name: float(f"{value / steps:.6g}") for name, value in sums.items()}
        self.window_start = self.step
        self.sums = {}
        loss = self.metrics["loss"]
        if not loss < DIVERGENCE_FACTOR * self.lowest_loss:  # also true of NaN
            raise RcdeployError(
                f"the run diverged: the loss is {loss:.4g} at step {self.step:,}, and was {self.lowest_loss:.4g}",
                fix=f"The last good checkpoint is kept. Try a smaller {section}.learning_rate, a longer "
                f"{section}.warmup_steps, or mixed_precision = 'bf16' instead of 'fp16'.",
            )
        self.lowest_loss = min(self.lowest_loss, loss)
        return self.metrics

    def as_json(self, sums: Mapping[str, float], score: str) -> dict[str, Any]:
        """The content of state.json. score: the metric that `best` is of."""
        return {
            "step": self.step,
            "best": self.best,
            "lowest_loss": self.lowest_loss,
            "since": self.window_start,
            "sums": dict(sums),
            "score": score,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any], score: str, device: torch.device) -> TrainState:
        """The state of a checkpoint. A best value by another score is dropped: it is not comparable."""
        comparable = state["best"] and state.get("score", "validation") == score
        return cls(
            step=state["step"],
            best=(float(state["best"][0]), int(state["best"][1])) if comparable else None,
            lowest_loss=state["lowest_loss"],
            window_start=state["since"],
            sums={name: torch.tensor(value, device=device) for name, value in state["sums"].items()},
        )
