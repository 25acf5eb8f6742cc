"""Which prompt decides what x_t becomes? The paper's Fig. 3 with the embedded teacher.

    python examples/figure_3.py                         # half a minute; writes results/figure_3.png

Each row: noise is added up to timestep t (forward process) to an image x_0 that the teacher sampled for one prompt, and
it is denoised from there with another prompt (DDIM; without guidance, because a student learns the teacher's plain
output). At small t it stays what it was; at large t it becomes what the other prompt describes: a random prompt can
replace the true one. In between both matter. With 8 x 8 latents that band is wide, from t = 250 nearly up to pure
noise; SD-1.4's, in the paper, is narrow. With --guidance 4 the second prompt wins much earlier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rcdeploy.condition import Condition, predict
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.plots import grid
from rcdeploy.sampling import sample_latents, starting_noise

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [
    ("a photo of a red dress on a white background", "a photo of a blue boot on a yellow background"),
    ("a photo of a large green bag on a pink background", "a photo of a white t-shirt on a purple background"),
    ("a photo of a yellow sneaker on a blue background", "a photo of a pair of teal trousers on a white background"),
    ("a photo of a small purple coat on a teal background", "a photo of a small purple coat on a red background"),
]
"""prompt of x_0, prompt that it is denoised with"""


@torch.no_grad()
def denoise(
    teacher: LatentDiffusionModel, x_t: Tensor, t: int, condition: Condition, steps: int, guidance_scale: float
) -> Tensor:
    """x_t [n, c, h, w] at timestep t -> x_0 [n, c, h, w] by DDIM over the timesteps up to t, under `condition`."""
    schedule = DDIMScheduler.from_config(teacher.schedule.config)
    timesteps = torch.linspace(0, t, max(2, round(steps * (t + 1) / 1000))).round().long().unique().flip(0)
    both = Condition.cat([teacher.encode_prompts([""] * len(x_t)), condition])
    latents = x_t
    for i, timestep in enumerate(timesteps):
        noise_pred = predict(teacher.unet, torch.cat([latents, latents]), timestep.expand(2 * len(x_t)), both)
        unconditional, conditional = noise_pred.chunk(2)
        noise = unconditional + guidance_scale * (conditional - unconditional)
        alpha = schedule.alphas_cumprod[timestep]
        x_0 = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        is_last = i == len(timesteps) - 1
        previous_alpha = torch.tensor(1.0) if is_last else schedule.alphas_cumprod[timesteps[i + 1]]
        latents = previous_alpha.sqrt() * x_0 + (1 - previous_alpha).sqrt() * noise  # DDIM, eta 0
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=str(ROOT / "examples/teachers/fashion"))
    parser.add_argument("--timesteps", type=int, nargs="+", default=[50, 150, 250, 350, 450, 550, 650, 750, 850])
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps from pure noise; fewer from a smaller t")
    parser.add_argument("--guidance", type=float, default=1.0, help="with the second prompt; 1: none")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results/figure_3.png")
    args = parser.parse_args()

    teacher = LatentDiffusionModel(args.teacher)
    shape = teacher.latent_shape()
    first, second = (teacher.encode_prompts([pair[i] for pair in PAIRS]) for i in (0, 1))
    null = teacher.encode_prompts([""])
    rows = range(len(PAIRS))
    x_0, x_0_from_noise = (
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
        columns.append(denoise(teacher, x_t, t, second, args.steps, args.guidance))
        print(f"t = {t}", flush=True)
    columns.append(x_0_from_noise)
    images = torch.stack([teacher.decode(column) for column in columns], 1)  # [row, column, 3, H, W]
    headings = [
        "x_0 of the first text",
        *(f"second text from t = {t}" for t in args.timesteps),
        "second text from noise",
    ]
    labels = [f"{a.split(' of a ')[1]}, then {b.split(' of a ')[1]}" for a, b in PAIRS]
    labels = [label.replace(" background", "").replace("pair of ", "") for label in labels]
    grid(list(zip(labels, images, strict=True)), headings, args.out, image_size=88)
    print(args.out)


if __name__ == "__main__":
    main()
