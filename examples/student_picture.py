"""README's first picture: the teacher with 50 UNet calls above, the shipped student as it wants to be drawn below.

    python examples/student_picture.py                  # seconds; writes results/student.png

Same prompts, same noise. The prompts are of held-out scenes, one for each item: in no pool and in no cache.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdeploy.bench.costs import branches
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.plots import grid
from rcdeploy.sampling import runtime_noise, sample_images
from rcdeploy_runtime import TextToImage

ROOT = Path(__file__).resolve().parent.parent
ITEMS = ("t-shirt", "trousers", "dress", "coat", "sandal", "sneaker", "bag", "boot")


def first_of_each_item(captions: list[str]) -> list[str]:
    shuffled = random.Random(0).sample(captions, len(captions))  # they are in order of colours and backgrounds
    return [next(c for c in shuffled if item in c) for item in ITEMS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=ROOT / "examples/students/fashion")
    parser.add_argument("--teacher", type=Path, default=ROOT / "examples/teachers/fashion")
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="of the teacher")
    parser.add_argument("--first-seed", type=int, default=0, help="image i has this seed + i")
    parser.add_argument("--out", type=Path, default=ROOT / "results/student.png")
    args = parser.parse_args()
    model = TextToImage.load(args.package)
    captions = first_of_each_item((args.package / "captions.txt").read_text(encoding="utf-8").splitlines())
    seeds = range(args.first_seed, args.first_seed + len(captions))
    sampling = model.package.sampling
    drawn = [model.generate(c, seed=s)[0][0] for c, s in zip(captions, seeds, strict=True)]
    student: Tensor = torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).movedim(-1, 1) / 255
    teacher = LatentDiffusionModel(str(args.teacher))
    expected = sample_images(
        teacher,
        captions,
        runtime_noise(teacher, seeds, (model.height, model.width)),
        num_inference_steps=25,
        guidance_scale=args.guidance_scale,
        seeds=seeds,
    )
    calls = sampling.unet_calls * branches(sampling.guidance_scale)
    grid([("teacher\n50 calls", expected.numpy()), (f"student\n{calls} calls", student.numpy())], captions, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
