"""How much does x_t still know of its text, and how much does the teacher still ask? The paper's Fig. 5, and one more.

    python examples/figure_5.py                         # a minute; writes results/figure_5.png and figure_5.json

Above: latents of two texts, noised to t (forward process) and projected onto two axes: the line between the means of
the two x_0, and the direction in which they vary most across it. With t the two clouds become one. Below, over all t:
how well that line still tells the two texts apart (0.5 is chance), and how far two texts are apart in the teacher's
answers to one x_t: mean squared difference of the noise it predicts, which the loss sees, and of the x_0 that follows
from it, which the eye would see. Two texts as unlike as these keep apart far longer than two captions of photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdeploy.diffusion_model import LatentDiffusionModel, predict
from rcdeploy.plots import new_figure, save_figure
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("a photo of a red dress on a white background", "a photo of a blue boot on a yellow background")
ANSWERS = ("predicted noise", "predicted x_0")
SHOWN = (0, 200, 400, 600, 800)


def latents_of(teacher: LatentDiffusionModel, text: str, count: int, seed: int, batch: int = 64) -> Tensor:
    """x_0 [count, c, h, w] that the teacher draws for one text, each from its own noise."""
    null, shape, parts = teacher.encode_prompts([""]), teacher.latent_shape(), []
    for start in range(0, count, batch):
        rows = range(start, min(start + batch, count))
        noise, condition = starting_noise(seed, rows, shape), teacher.encode_prompts([text] * len(rows))
        parts.append(sample_latents(teacher.unet, teacher.schedule, noise, condition, null, guidance_scale=4.0))
    return torch.cat(parts)


def axes_of(a: Tensor, b: Tensor) -> Tensor:
    """x_0 of two texts [n, d] -> two orthonormal axes [d, 2]: between the means, and the widest across that."""
    between = a.mean(0) - b.mean(0)
    between = between / between.norm()
    rest = torch.cat([a - a.mean(0), b - b.mean(0)])
    rest = rest - (rest @ between)[:, None] * between
    widest = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    return torch.stack([between, widest], 1)


def told_apart(a: Tensor, b: Tensor) -> float:
    """Positions on a line [n], [m] -> the chance that one of a lies beyond one of b (area under the ROC curve)."""
    return float((a[:, None] > b[None]).float().mean())


@torch.no_grad()
def asked(teacher: LatentDiffusionModel, a: Tensor, b: Tensor, t: int) -> tuple[float, float]:
    """Mean squared difference of the teacher's answers to x_t of either text, under its own and the other text:
    of the noise it predicts, and of x_0 = (x_t - sqrt(1 - alpha) noise) / sqrt(alpha).
    """
    x_t, timesteps = torch.cat([a, b]), torch.full((len(a) + len(b),), t)
    own = teacher.encode_prompts([TEXTS[0]] * len(a) + [TEXTS[1]] * len(b))
    other = teacher.encode_prompts([TEXTS[1]] * len(a) + [TEXTS[0]] * len(b))
    difference = predict(teacher.unet, x_t, timesteps, own) - predict(teacher.unet, x_t, timesteps, other)
    alpha, in_noise = teacher.schedule.alphas_cumprod[t], difference.square().mean()
    return float(in_noise), float(in_noise * (1 - alpha) / alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(ROOT / "examples/teachers/fashion"))
    parser.add_argument("--count", type=int, default=96, help="latents of each text")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results/figure_5.png")
    args = parser.parse_args()

    teacher = LatentDiffusionModel(args.teacher)
    x_0 = [latents_of(teacher, text, args.count, args.seed + i) for i, text in enumerate(TEXTS)]
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(args.seed + i)) for i, x in enumerate(x_0)]
    axes = axes_of(*(x.flatten(1) for x in x_0))

    def at(t: int) -> list[Tensor]:
        return [
            teacher.schedule.add_noise(x, n, torch.full((len(x),), t)) if t else x
            for x, n in zip(x_0, noise, strict=True)
        ]

    clouds = {t: [(x.flatten(1) @ axes).numpy() for x in at(t)] for t in SHOWN}
    timesteps = list(range(0, 1000, 50)) + [999]
    few = min(8, args.count)
    apart, answers = [], []
    for t in timesteps:
        a, b = at(t)
        apart.append(told_apart(*((x.flatten(1) @ axes)[:, 0] for x in (a, b))))
        answers.append(asked(teacher, a[:few], b[:few], t))
    draw(clouds, timesteps, apart, answers, args.out)
    figures = {"texts": TEXTS, "timesteps": timesteps, "told_apart": apart}
    figures |= {
        f"difference_{name.replace(' ', '_')}": list(v)
        for name, v in zip(ANSWERS, zip(*answers, strict=True), strict=True)
    }
    write_json(args.out.with_suffix(".json"), figures)
    print(args.out)


def draw(
    clouds: dict[int, list[np.ndarray]],
    ts: list[int],
    apart: list[float],
    answers: list[tuple[float, float]],
    out: Path,
) -> None:
    figure = new_figure(10, 5.2)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.1, 1))
    above = rows[0].subgridspec(1, len(clouds)).subplots(sharex=True, sharey=True)
    for axes, (t, both) in zip(above, clouds.items(), strict=True):
        for points, text, colour in zip(both, TEXTS, ("C3", "C0"), strict=True):
            axes.scatter(*points.T, s=5, alpha=0.5, color=colour, label=text.removeprefix("a photo of "))
        axes.set(title=f"t = {t}", xticks=[], yticks=[])
    figure.legend(*above[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, markerscale=3)
    left, right = rows[1].subgridspec(1, 2).subplots()
    left.plot(ts, apart, marker=".", color="C2")
    left.set(xlabel="t", ylim=(0.45, 1.02), title="x_t told apart by its text (0.5: chance)")
    for name, values, colour in zip(ANSWERS, zip(*answers, strict=True), ("C4", "C1"), strict=True):
        right.plot(ts, values, marker=".", color=colour, label=name)
    right.set(xlabel="t", yscale="log", title="two texts apart in the teacher's answer")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
