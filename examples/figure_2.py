"""Can a student draw a digit whose images it never saw? The paper's Fig. 2, with handwritten digits and one left out.

    pip install -e '.[examples]'                        # scikit-learn, which has 1,797 real digits of 8 x 8 pixels
    python examples/figure_2.py                         # eight minutes of one core; writes results/figure_2.png

A small teacher learns all ten digits. It samples images of nine; a student of half its width is distilled from those
alone, once as in the paper's section 3.2 (the figure), and once with random conditioning (section 3.3), where x_t of
the nine meets the tenth as a condition. All draw from the same noise. A classifier of real digits counts what is right.

Smaller than the paper's: 8 x 8 pixels instead of MNIST's 28 x 28, no text encoder (a digit is a learnt vector), pixels
instead of latents. Random conditioning, sampling and loss are rcdeploy's own functions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from training_loop import train

from rcdeploy.condition import Condition, predict
from rcdeploy.conditioning import NULL, UNPAIRED, Draw, RandomConditioning, probability
from rcdeploy.distill.losses import output_loss
from rcdeploy.plots import grid
from rcdeploy.sampling import sample_latents, starting_noise
from rcdeploy_runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (1, 8, 8)
WIDTH = 32
"""of a digit's vector"""
NOTHING = 10
"""the row of the null condition"""
BATCH_SIZE = 32
GUIDANCE_SCALE = 2.0


def build_unet(channels: tuple[int, int]) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
    )


class Digits(nn.Module):
    """The conditions: a vector for each digit and one for nothing, as a text encoder has for its prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(NOTHING + 1, WIDTH)

    def forward(self, digits: Tensor) -> Condition:
        return Condition(self.vectors(digits)[:, None])


def train_teacher(
    images: Tensor, labels: Tensor, schedule: DDIMScheduler, steps: int, seed: int
) -> tuple[UNet2DConditionModel, Digits]:
    """Denoising loss on real digits [n, 1, 8, 8] in [-1, 1], the label dropped one time in ten; the EMA's weights."""
    unet, digits = build_unet((32, 64)), Digits()
    parameters = [*unet.parameters(), *digits.parameters()]
    ema = EMAModel(parameters, decay=0.995)
    random = torch.Generator().manual_seed(seed)

    def step(_i: int) -> Tensor:
        rows = torch.randint(len(images), (BATCH_SIZE,), generator=random)
        noise = torch.randn(images[rows].shape, generator=random)
        timesteps = torch.randint(1000, (BATCH_SIZE,), generator=random)
        drop = torch.rand(BATCH_SIZE, generator=random) < 0.1
        condition = digits(labels[rows].masked_fill(drop, NOTHING))
        x_t = schedule.add_noise(images[rows], noise, timesteps)
        return nn.functional.mse_loss(predict(unet, x_t, timesteps, condition), noise)

    train("teacher", parameters, step, steps, 2e-3, lambda: ema.step(parameters))
    ema.copy_to(parameters)
    return unet.requires_grad_(False).eval(), digits.requires_grad_(False)


def distil(
    teacher: UNet2DConditionModel,
    digits: Digits,
    schedule: DDIMScheduler,
    cache: tuple[Tensor, Tensor],
    conditioning: RandomConditioning,
    steps: int,
) -> UNet2DConditionModel:
    """A student of half the teacher's width by equation 1, on the condition of equation 3.

    cache: images [n, 1, 8, 8] that the teacher sampled, and the digit of each. The pool of texts: all ten digits.
    """
    images, labels = cache
    student = build_unet((16, 32))
    parameters = list(student.parameters())
    ema = EMAModel(parameters, decay=0.995)

    def digit_of(draw: Draw) -> int:
        if draw.prompt_kind == NULL:
            return NOTHING
        return draw.prompt if draw.prompt_kind == UNPAIRED else int(labels[draw.row])

    def step(i: int) -> Tensor:
        draws = [conditioning.draw(i, sample, SHAPE) for sample in range(BATCH_SIZE)]
        timesteps = torch.tensor([draw.timestep for draw in draws])
        noise = torch.from_numpy(np.stack([draw.noise for draw in draws]))
        x_t = schedule.add_noise(images[[draw.row for draw in draws]], noise, timesteps)
        condition = digits(torch.tensor([digit_of(draw) for draw in draws]))
        with torch.no_grad():
            target = predict(teacher, x_t, timesteps, condition)
        return output_loss(target, predict(student, x_t, timesteps, condition))

    train("student", parameters, step, steps, 2e-3, lambda: ema.step(parameters))
    ema.copy_to(parameters)
    return student.eval()


def sample(
    unet: UNet2DConditionModel, digits: Digits, schedule: DDIMScheduler, chosen: Tensor, seed: int, steps: int
) -> Tensor:
    """Images [n, 1, 8, 8] in [-1, 1] of the chosen digits [n]; image i starts from noise i, whichever network draws."""
    return sample_latents(
        unet,
        schedule,
        starting_noise(seed, range(len(chosen)), SHAPE),
        digits(chosen),
        digits(torch.tensor([NOTHING])),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE_SCALE,
    ).clamp(-1, 1)


def real_digits() -> tuple[Tensor, Tensor, Any]:
    """Images [1797, 1, 8, 8] in [-1, 1], their labels, and a classifier that was trained on them."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(data.target), SVC(gamma="scale").fit(images.flatten(1).numpy(), data.target)


def students(args: argparse.Namespace, teacher: UNet2DConditionModel, digits: Digits, schedule: DDIMScheduler) -> Any:
    """Name -> a student of the cached images of nine digits, without and with random conditioning."""
    seen = torch.tensor([digit for digit in range(10) if digit != args.excluded])
    cached_digits = seen.repeat(-(-args.cached // len(seen)))[: args.cached]
    cache = sample(teacher, digits, schedule, cached_digits, args.seed, args.sampling_steps), cached_digits
    trained = {}
    for name, p in (("student without", "none"), ("student with", args.probability)):
        torch.manual_seed(args.seed + 1)  # the same first weights
        conditioning = RandomConditioning(probability(p), args.cached, 10, seed=args.seed)
        trained[name] = distil(teacher, digits, schedule, cache, conditioning, args.steps)
    return trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--excluded", type=int, default=3, choices=range(10), help="the digit without images")
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1000, help="of each student")
    parser.add_argument("--cached", type=int, default=900, help="images that the teacher samples of the nine digits")
    parser.add_argument("--scored", type=int, default=50, help="images of each digit that the classifier reads")
    parser.add_argument("--sampling-steps", type=int, default=25, help="of DDIM")
    parser.add_argument("--probability", default="exponential", help="p(t) of random conditioning, as in a recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results/figure_2.png")
    args = parser.parse_args()

    images, labels, classifier = real_digits()
    schedule = DDIMScheduler(clip_sample=False)
    torch.manual_seed(args.seed)
    teacher, digits = train_teacher(images, labels, schedule, args.teacher_steps, args.seed)
    networks = {"teacher": teacher, **students(args, teacher, digits, schedule)}

    scored = torch.arange(10).repeat(args.scored)
    columns = [*(digit for digit in range(10) if digit != args.excluded), *[args.excluded] * 4]
    right, rows = {}, []
    for name, network in networks.items():
        drawn = sample(network, digits, schedule, scored, args.seed + 2, args.sampling_steps)
        correct = classifier.predict(drawn.flatten(1).numpy()) == scored.numpy()
        of_excluded = scored.numpy() == args.excluded
        right[name] = {"excluded": 100 * correct[of_excluded].mean(), "others": 100 * correct[~of_excluded].mean()}
        print(name, *(f"{value:.0f} % of {part} right" for part, value in right[name].items()), sep=", ")
        shown = sample(network, digits, schedule, torch.tensor(columns), args.seed + 3, args.sampling_steps)
        rows.append((name, (shown / 2 + 0.5).expand(-1, 3, -1, -1).numpy()))
    headings = [f"{digit}, without images" if digit == args.excluded else f"{digit}" for digit in columns]
    grid(rows, headings, args.out, image_size=72)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    write_json(args.out.with_suffix(".json"), {**settings, "right_percent": right})
    print(args.out)


if __name__ == "__main__":
    main()
