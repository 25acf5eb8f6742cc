"""A plain training loop: AdamW with warm-up and cosine decay."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup

Step = Callable[[int], torch.Tensor]


def train(name: str, params: list[torch.Tensor], step: Step, steps: int, lr: float, after: Callable[[], None]) -> None:
    """AdamW, 5 % warm-up, cosine to zero, clipped at 1; step(i) gives the loss, after() follows each update."""
    optimizer = torch.optim.AdamW(params, lr, weight_decay=1e-2)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    start = time.monotonic()
    running = 0.0
    for i in range(steps):
        loss = step(i)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        after()
        running += loss.item()
        if (i + 1) % 100 == 0:
            minutes_left = (time.monotonic() - start) / (i + 1) * (steps - i - 1) / 60
            print(f"{name} {i + 1}/{steps} loss {running / 100:.5f}, {minutes_left:.1f} min left", flush=True)
            running = 0.0
