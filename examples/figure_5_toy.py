"""How soon do x_t of two conditions look alike? The paper's Fig. 5 with two-dimensional data, without a model.

    python examples/figure_5_toy.py                     # seconds; writes results/figure_5_toy.png and figure_5_toy.json

Two conditions, two arcs of points, and the forward process with SD-1.4's noise schedule. Above: x_t of both. Below: how
much the two distributions p(x_t | c) overlap, from 0 (apart) to 1 (the same). Given many points of x_0 each of them is
a mixture of Gaussians, so the overlap needs no model. With hundreds of dimensions it comes later: see figure_5.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from teacher_networks import noise_schedule
from torch import Tensor

from rcdeploy.plots import new_figure, save_figure
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
CLOUD_TIMESTEPS = (0, 200, 400, 600, 800)
COLOURS = ("C3", "C0")


def arcs(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_0 of two conditions, each [count, 2]: arcs that face each other, scaled to a variance of about 1."""
    angle = torch.rand(count, generator=random) * torch.pi
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    thickness = 0.08 * torch.randn(2, count, 2, generator=random)
    return 1.3 * (upper + thickness[0]), 1.3 * (thickness[1] - upper)


def log_density(x_t: Tensor, x_0: Tensor, alpha: Tensor) -> Tensor:
    """log p(x_t | c) [n] up to a constant: the mean over x_0 [m, 2] of N(sqrt(alpha) x_0, (1 - alpha) I)."""
    return (-torch.cdist(x_t, alpha.sqrt() * x_0).square() / (2 * (1 - alpha))).logsumexp(1)


def overlap(x_t: Tensor, x_0: tuple[Tensor, Tensor], alpha: Tensor) -> float:
    """Integral of min(p, q), from x_t of both conditions in equal parts: the mean of 2 min(p, q) / (p + q)."""
    p, q = (log_density(x_t, x, alpha) for x in x_0)
    return float(2 * torch.sigmoid(-(p - q).abs()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=800, help="points of each condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results/figure_5_toy.png")
    args = parser.parse_args()

    random = torch.Generator().manual_seed(args.seed)
    x_0 = arcs(args.count, random)
    noise = [torch.randn(x.shape, generator=random) for x in x_0]
    known = arcs(8 * args.count, random)  # other points than those of x_t, or each would be found beside itself
    alphas = noise_schedule().alphas_cumprod

    def at(t: int) -> list[Tensor]:
        return [alphas[t].sqrt() * x + (1 - alphas[t]).sqrt() * n for x, n in zip(x_0, noise, strict=True)]

    timesteps = [*range(0, 1000, 25), 999]
    overlaps = [overlap(torch.cat(at(t)), known, alphas[t]) for t in timesteps]
    draw({t: at(t) for t in CLOUD_TIMESTEPS}, timesteps, overlaps, args.out)
    write_json(args.out.with_suffix(".json"), {"timesteps": timesteps, "overlap": overlaps})
    print(args.out)


def draw(clouds: dict[int, list[Tensor]], timesteps: list[int], overlaps: list[float], out: Path) -> None:
    figure = new_figure(10, 4.4)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.3, 1))
    above = rows[0].subgridspec(1, len(clouds)).subplots(sharex=True, sharey=True)
    for axes, (t, both) in zip(above, clouds.items(), strict=True):
        for points, name, colour in zip(both, ("c", "another c"), COLOURS, strict=True):
            axes.scatter(*points.T, s=3, alpha=0.4, color=colour, label=f"x_t of {name}")
        axes.set(title=f"t = {t}", xticks=[], yticks=[], aspect="equal")
    figure.legend(*above[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, markerscale=4)
    below = rows[1].subgridspec(1, 1).subplots()
    below.plot(timesteps, overlaps, color="C2")
    below.set(xlabel="t", ylim=(-0.03, 1.03), title="overlap of the two distributions of x_t")
    below.grid(alpha=0.3)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
