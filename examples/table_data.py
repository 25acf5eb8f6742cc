"""Data of the paper's tables in miniature beside the embedded teacher: real images, pools of several sizes, prompts.

    python examples/table_data.py                       # half a minute; then rcdeploy sweep recipes/tables/table_1.toml

Writes into build/tables:

    real_pictures/      coloured Fashion-MNIST photographs with metadata.csv: "real" images of Table 1
    pool_paired_0/, pool_eighth_0/, pool_half_0/    pools of Table B: the prompts of the cached latents of seed 0 alone,
                        with an eighth and with half of all captions; so for every seed
    pool_unseen_0/      pool of Table 2: the same prompts, and the captions of the unseen items; so for every seed

Held-out scenes are in none of them.
    templates.txt       prompts of Table 3 that are independent of the captions: templates over the vocabulary alone
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import sys
import tempfile
from pathlib import Path

import torch
from fashion import COLOURS, ITEMS, SIZES, Scene, draw, is_held_out, photographs, some_scenes
from PIL import Image

from rcdeploy.prompts.patterns import WholeWordPatterns, passing
from rcdeploy.prompts.pool_builder import build_pool
from rcdeploy.prompts.readers import read_batches
from rcdeploy.random_streams import SHUFFLE, generator
from rcdeploy.recipe import Recipe
from rcdeploy.recipe_file import load_recipe
from rcdeploy_runtime.files import new_folder, replacing

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = (
    "{colour} {item} with {back} behind it",
    "{item}, {colour}, {back} background",
    "one {colour} {item} on {back}",
    "{back} background and a {colour} {item}",
    "{size} {colour} {item}, studio, {back} background",
)
"""ours; none is a phrasing of fashion.py"""


def write_real_images(dataset: Path, out: Path, count: int, seed: int = 0) -> None:
    """`count` photographs, each as a random scene of its item with one of the scene's captions.

    Of those of held-out scenes no student learns: their captions are not among a recipe's paired prompts.
    """
    photos, items = photographs(dataset, "train")
    rng = random.Random(seed)
    chosen = rng.sample(range(len(photos)), count)
    chosen_scenes = some_scenes(items[chosen], rng)
    images = draw(photos[chosen], chosen_scenes, torch.Generator().manual_seed(seed))
    with new_folder(out) as beside, (beside / "metadata.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["file_name", "text"])
        for i, (image, scene) in enumerate(zip(images, chosen_scenes, strict=True)):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(beside / f"{i:05}.png")
            table.writerow([f"{i:05}.png", rng.choice(scene.captions())])


def paired_texts(recipe: Recipe) -> list[str]:
    """The prompts of the recipe's cached latents, in the cache's order, as latent_cache.prepare selects them."""
    captions = passing(
        all_captions(recipe), include=WholeWordPatterns([]), exclude=WholeWordPatterns(recipe.prompts.paired_exclude)
    )
    order = generator(recipe.cache.seed, SHUFFLE).permutation(len(captions))[: recipe.prompts.paired_count]
    return [captions[i] for i in order]


def all_captions(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(c for p in recipe.prompts.paired for rows in read_batches(Path(p)) for c in rows if c))


def pools(recipe: Recipe, out: Path) -> None:
    """The pools of the seed whose cache the recipe has."""
    captions = all_captions(recipe)
    paired = paired_texts(recipe)
    shuffled = random.Random(0).sample(captions, len(captions))
    unseen = WholeWordPatterns(recipe.prompts.paired_exclude)
    further = {
        "paired": [],
        "eighth": shuffled[: len(captions) // 8],
        "half": shuffled[: len(captions) // 2],
        "unseen": list(itertools.compress(captions, unseen.matches(captions))),
    }
    for name, prompts in further.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.txt"
            file.write_text("".join(f"{c}\n" for c in [*paired, *prompts]))
            folder_name = f"pool_{name}_{recipe.cache.seed}"
            print(f"{folder_name}: {len(build_pool([file], out / folder_name)):,} prompts")


def scene_of(item: str, colour: str, background: str) -> Scene:
    return Scene(ITEMS.index(item), list(COLOURS).index(colour), list(COLOURS).index(background), 0, 0)


def templates(out: Path) -> None:
    combinations = itertools.product(TEMPLATES, ITEMS, COLOURS, COLOURS, SIZES)
    prompts = {
        " ".join(template.format(item=item, colour=colour, back=back, size=size).split())
        for template, item, colour, back, size in combinations
        if colour != back and not is_held_out(scene_of(item, colour, back))
    }
    with replacing(out) as beside:
        beside.write_text("".join(f"{prompt}\n" for prompt in sorted(prompts)))
    print(f"{out.name}: {len(prompts):,} prompts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/tables/fashion.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "build/tables")
    parser.add_argument("--images", "--pictures", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3, help="pools for the caches of these seeds, from 0")
    args = parser.parse_args()
    for seed in range(args.seeds):
        pools(load_recipe(args.recipe, [f"cache.seed={seed}"]), args.out)
    templates(args.out / "templates.txt")
    if not (args.data / "train-images-idx3-ubyte.gz").is_file():
        print(f"{args.data} is missing: no real images are made (Debian: dataset-fashion-mnist)", file=sys.stderr)
        raise SystemExit(2)
    write_real_images(args.data, args.out / "real_pictures", args.images)
    print(f"real_pictures: {args.images:,}")


if __name__ == "__main__":
    main()
