"""How much information on its prompt does x_t hold, and how much does the teacher use it? The paper's Fig. 5 and more.

    python examples/figure_5.py                         # a minute; writes results/figure_5.png and figure_5.json

Above: noisy latents x_t of two prompts (forward process), projected onto two axes: the line between the means of the
two x_0, and the direction in which they vary most across it. With t the two clouds come closer. Below, over all t: how
well that line separates the two prompts (0.5 is chance), and how much the teacher's outputs for one x_t differ between
the two prompts: mean squared difference of the predicted noise, which the loss sees, and of the x_0 that follows from
it, which the eye would see. Prompts as unlike as these stay separate far longer than two captions of photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdeploy.condition import predict
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.plots import new_figure, save_figure
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("a photo of a red dress on a white background", "a photo of a blue boot on a yellow background")
OUTPUTS = ("predicted noise", "predicted x_0")
CLOUD_TIMESTEPS = (0, 200, 400, 600, 800)
MAX_COMPARED_LATENTS = 8
"""of each prompt, for the differences of the teacher's outputs"""


def latents_of(teacher: LatentDiffusionModel, prompt: str, count: int, seed: int, batch_size: int = 64) -> Tensor:
    """x_0 [count, c, h, w] that the teacher samples for one prompt, each from its own noise."""
    null = teacher.encode_prompts([""])
    shape = teacher.latent_shape()
    batches = []
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        noise = starting_noise(seed, rows, shape)
        condition = teacher.encode_prompts([prompt] * len(rows))
        batches.append(sample_latents(teacher.unet, teacher.schedule, noise, condition, null, guidance_scale=4.0))
    return torch.cat(batches)


def axes_of(a: Tensor, b: Tensor) -> Tensor:
    """x_0 of two prompts [n, d] -> two orthonormal axes [d, 2]: between the means, and the widest across that."""
    between = a.mean(0) - b.mean(0)
    between = between / between.norm()
    rest = torch.cat([a - a.mean(0), b - b.mean(0)])
    rest = rest - (rest @ between)[:, None] * between
    widest = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    return torch.stack([between, widest], 1)


def separability(a: Tensor, b: Tensor) -> float:
    """Positions on a line [n], [m] -> the chance that one of a lies beyond one of b (area under the ROC curve)."""
    return float((a[:, None] > b[None]).float().mean())


@torch.no_grad()
def output_differences(teacher: LatentDiffusionModel, a: Tensor, b: Tensor, t: int) -> tuple[float, float]:
    """Mean squared difference of the teacher's outputs for x_t of both prompts, with the own and the other prompt.

    Of the predicted noise, and of x_0 = (x_t - sqrt(1 - alpha) noise) / sqrt(alpha). a, b: x_t of either prompt.
    """
    x_t = torch.cat([a, b])
    timesteps = torch.full((len(x_t),), t)
    own = teacher.encode_prompts([PROMPTS[0]] * len(a) + [PROMPTS[1]] * len(b))
    other = teacher.encode_prompts([PROMPTS[1]] * len(a) + [PROMPTS[0]] * len(b))
    difference = predict(teacher.unet, x_t, timesteps, own) - predict(teacher.unet, x_t, timesteps, other)
    in_noise = difference.square().mean()
    alpha = teacher.schedule.alphas_cumprod[t]
    return float(in_noise), float(in_noise * (1 - alpha) / alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(ROOT / "examples/teachers/fashion"))
    parser.add_argument("--count", type=int, default=96, help="latents of each prompt")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results/figure_5.png")
    args = parser.parse_args()

    teacher = LatentDiffusionModel(args.teacher)
    x_0 = [latents_of(teacher, prompt, args.count, args.seed + i) for i, prompt in enumerate(PROMPTS)]
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(args.seed + i)) for i, x in enumerate(x_0)]
    axes = axes_of(*(x.flatten(1) for x in x_0))

    def at(t: int) -> list[Tensor]:
        return [
            teacher.schedule.add_noise(x, n, torch.full((len(x),), t)) if t else x
            for x, n in zip(x_0, noise, strict=True)
        ]

    clouds = {t: [(x.flatten(1) @ axes).numpy() for x in at(t)] for t in CLOUD_TIMESTEPS}
    timesteps = list(range(0, 1000, 50)) + [999]
    compared = min(MAX_COMPARED_LATENTS, args.count)
    separabilities = []
    differences = []
    for t in timesteps:
        a, b = at(t)
        separabilities.append(separability(*((x.flatten(1) @ axes)[:, 0] for x in (a, b))))
        differences.append(output_differences(teacher, a[:compared], b[:compared], t))
    draw(clouds, timesteps, separabilities, differences, args.out)
    result = {"texts": PROMPTS, "timesteps": timesteps, "told_apart": separabilities}
    result |= {
        f"difference_{name.replace(' ', '_')}": list(values)
        for name, values in zip(OUTPUTS, zip(*differences, strict=True), strict=True)
    }
    write_json(args.out.with_suffix(".json"), result)
    print(args.out)


def draw(
    clouds: dict[int, list[np.ndarray]],
    timesteps: list[int],
    separabilities: list[float],
    differences: list[tuple[float, float]],
    out: Path,
) -> None:
    figure = new_figure(10, 5.2)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.1, 1))
    above = rows[0].subgridspec(1, len(clouds)).subplots(sharex=True, sharey=True)
    for axes, (t, both) in zip(above, clouds.items(), strict=True):
        for points, prompt, colour in zip(both, PROMPTS, ("C3", "C0"), strict=True):
            axes.scatter(*points.T, s=5, alpha=0.5, color=colour, label=prompt.removeprefix("a photo of "))
        axes.set(title=f"t = {t}", xticks=[], yticks=[])
    figure.legend(*above[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, markerscale=3)
    left, right = rows[1].subgridspec(1, 2).subplots()
    left.plot(timesteps, separabilities, marker=".", color="C2")
    left.set(xlabel="t", ylim=(0.45, 1.02), title="prompts separated by x_t (0.5: chance)")
    for name, values, colour in zip(OUTPUTS, zip(*differences, strict=True), ("C4", "C1"), strict=True):
        right.plot(timesteps, values, marker=".", color=colour, label=name)
    right.set(xlabel="t", yscale="log", title="difference of the teacher's outputs")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
