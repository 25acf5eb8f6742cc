"""Whose picture does x_t become? The paper's Fig. 3 with the embedded teacher.

    python examples/figure_3.py                         # half a minute; writes results/figure_3.png

Each row: a picture x_0 that the teacher drew for one text is noised to timestep t (forward process), and drawn on from
there with another text (DDIM; without guidance, because the teacher's plain answer is what a student learns). At small
t it stays what it was; at large t it becomes what the other text says: a random text can stand in for the true one.
Between them both have a say. With 8 x 8 latents that band is wide, from t = 250 nearly up to pure noise; in the paper
SD-1.4's is narrow. With --guidance 4 the second text wins much earlier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy.diffusion_model import Condition, LatentDiffusionModel, predict
from rcdeploy.plots import grid
from rcdeploy.sampling import sample_latents, starting_noise

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [
    ("a photo of a red dress on a white background", "a photo of a blue boot on a yellow background"),
    ("a photo of a large green bag on a pink background", "a photo of a white t-shirt on a purple background"),
    ("a photo of a yellow sneaker on a blue background", "a photo of a pair of teal trousers on a white background"),
    ("a photo of a small purple coat on a teal background", "a photo of a small purple coat on a red background"),
]
"""what x_0 was drawn for, what it is drawn on with"""


@torch.no_grad()
def drawn_on(
    teacher: LatentDiffusionModel, x_t: Tensor, t: int, condition: Condition, steps: int, guidance_scale: float
) -> Tensor:
    """x_t [n, c, h, w] at timestep t -> x_0 [n, c, h, w] by DDIM over the timesteps up to t, under `condition`."""
    schedule = DDIMScheduler.from_config(teacher.schedule.config)
    spaced = torch.linspace(0, t, max(2, round(steps * (t + 1) / 1000))).round().long().unique().flip(0)
    both = Condition.cat([teacher.encode_prompts([""] * len(x_t)), condition])
    latents, last = x_t, len(spaced) - 1
    for i, now in enumerate(spaced):
        said = predict(teacher.unet, torch.cat([latents, latents]), now.expand(2 * len(x_t)), both)
        unconditional, conditional = said.chunk(2)
        noise = unconditional + guidance_scale * (conditional - unconditional)
        alpha = schedule.alphas_cumprod[now]
        x_0 = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        before = schedule.alphas_cumprod[spaced[i + 1]] if i < last else torch.tensor(1.0)
        latents = before.sqrt() * x_0 + (1 - before).sqrt() * noise  # DDIM, eta 0
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(ROOT / "examples/teachers/fashion"))
    parser.add_argument("--timesteps", type=int, nargs="+", default=[50, 150, 250, 350, 450, 550, 650, 750, 850])
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps from pure noise; fewer from a smaller t")
    parser.add_argument("--guidance", type=float, default=1.0, help="under the second text; 1: none")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results/figure_3.png")
    args = parser.parse_args()

    teacher = LatentDiffusionModel(args.teacher)
    shape = teacher.latent_shape()
    first, second = (teacher.encode_prompts([pair[i] for pair in PAIRS]) for i in (0, 1))
    null, rows = teacher.encode_prompts([""]), range(len(PAIRS))
    x_0, other = (
        sample_latents(
            teacher.unet,
            teacher.schedule,
            starting_noise(args.seed, rows, shape),
            condition,
            null,
            num_inference_steps=args.steps,
            guidance_scale=scale,
        )
        for condition, scale in ((first, 4.0), (second, args.guidance))
    )
    noise = starting_noise(args.seed + 1, rows, shape)
    columns = [x_0]
    for t in args.timesteps:
        x_t = teacher.schedule.add_noise(x_0, noise, torch.tensor([t] * len(PAIRS)))
        columns.append(drawn_on(teacher, x_t, t, second, args.steps, args.guidance))
        print(f"t = {t}", flush=True)
    columns.append(other)
    pictures = torch.stack([teacher.decode(column) for column in columns], 1)  # [row, column, 3, H, W]
    heads = ["x_0 of the first text", *(f"second text from t = {t}" for t in args.timesteps), "second text from noise"]
    labels = [f"{a.split(' of a ')[1]}, then {b.split(' of a ')[1]}" for a, b in PAIRS]
    labels = [label.replace(" background", "").replace("pair of ", "") for label in labels]
    grid(list(zip(labels, pictures, strict=True)), heads, args.out, image_size=88)
    print(args.out)


if __name__ == "__main__":
    main()
