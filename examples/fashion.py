"""Fashion-MNIST as captioned colour images: the training data of the embedded teacher.

A photograph (28 x 28, grey) becomes a coloured item of some size at some place on a coloured background with a soft
shadow, 64 x 64, with a caption that describes it. Photographs: Zalando's Fashion-MNIST (MIT licence), Debian's package
`dataset-fashion-mnist` or the same four .gz files in any folder.
"""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = {"t-shirt": 0, "trousers": 1, "dress": 3, "coat": 4, "sandal": 5, "sneaker": 7, "bag": 8, "boot": 9}
"""Fashion-MNIST's, less pullover and shirt: at 64 pixels they cannot be distinguished from coats"""
ITEMS = list(LABELS)
COLOURS = {
    "red": (0.86, 0.10, 0.12),
    "yellow": (1.00, 0.88, 0.10),
    "green": (0.12, 0.62, 0.20),
    "teal": (0.05, 0.66, 0.66),
    "blue": (0.13, 0.28, 0.90),
    "purple": (0.52, 0.18, 0.72),
    "pink": (1.00, 0.56, 0.76),
    "white": (0.96, 0.96, 0.96),
}
SIZES = {"small": 34, "": 44, "large": 56}
"""side of the 28 x 28 photograph in the image, in pixels; captions do not mention medium"""
PLACES = {"on the left": -10, "": 0, "on the right": 10}
"""shift of the item in pixels; large items stand in the middle"""
IMAGE_SIZE = 64

_colour = "|".join(COLOURS)
_item = "|".join(ITEMS)
ATTRIBUTES = {
    "item": {"labels": ITEMS, "pattern": rf"(?<![\w-])({_item})(?!\w)"},
    "colour": {"labels": list(COLOURS), "pattern": rf"({_colour}) (?:{_item})(?!\w)"},
    "background": {"labels": list(COLOURS), "pattern": rf"({_colour}) background"},
}


@dataclass(frozen=True)
class Scene:
    item: int
    colour: int
    background: int
    size: int
    place: int

    def captions(self) -> list[str]:
        """The same image in five phrasings."""
        item = ITEMS[self.item]
        names = list(COLOURS)
        one = "a pair of" if item == "trousers" else "a"
        thing = " ".join(w for w in (list(SIZES)[self.size], names[self.colour], item) if w)
        back = f"{names[self.background]} background"
        place = list(PLACES)[self.place]
        at = f" {place}" if place else ""
        then = f", {place}" if place else ""
        return [
            f"a photo of {one} {thing}{at} on a {back}",
            f"{thing}, {back}{then}",
            f"{one} {thing} in front of a {back}{then}",
            f"on a {back}, {one} {thing}{at}",
            f"a picture of {one} {thing}{at}, {back}",
        ]


def is_held_out(scene: Scene) -> bool:
    """Whether a scene is kept out of caches and prompt pools, to be scored: one combination of item, colour and
    background in seven.

    Each item, each colour and each background is held out as often as any other; each item's pairs are of their own
    (t-shirt and boot share theirs), so every pair of colours is met in text with other items.
    """
    step = 1 + scene.item % (len(COLOURS) - 1)
    return (scene.background - scene.colour) % len(COLOURS) == step


def scenes() -> list[Scene]:
    """All of them: 8 items x 56 pairs of colours x 7 sizes and places = 3,136."""
    n_colours = len(COLOURS)
    large = 2
    middle = 1
    return [
        Scene(i, c, b, s, p)
        for i, c, b, s, p in itertools.product(
            range(len(ITEMS)), range(n_colours), range(n_colours), range(3), range(3)
        )
        if c != b and (s != large or p == middle)
    ]


def photographs(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """split "train" or "t10k" -> photographs of our items [n, 1, 28, 28] in [0, 1], items [n]."""

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)

    images = read(f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = read(f"{split}-labels-idx1-ubyte.gz", 8)
    known = np.isin(labels, list(LABELS.values()))
    items = np.searchsorted(list(LABELS.values()), labels[known])
    return torch.from_numpy(images[known] / np.float32(255)), torch.from_numpy(items)


def draw(photos: Tensor, chosen: list[Scene], generator: torch.Generator) -> Tensor:
    """photos [n, 1, 28, 28] and n scenes -> images [n, 3, 64, 64] in [0, 1]; size and place jitter a little."""
    n = len(chosen)
    palette = torch.tensor(list(COLOURS.values()))
    size = torch.tensor([list(SIZES.values())[s.size] for s in chosen]) * (
        0.95 + 0.1 * torch.rand(n, generator=generator)
    )
    shift = (
        torch.tensor([list(PLACES.values())[s.place] for s in chosen]) + 3 * torch.rand(n, generator=generator) - 1.5
    )
    drop = 3 * torch.rand(n, generator=generator) - 1.5
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = IMAGE_SIZE / size
    theta[:, 0, 2] = -2 * shift / size
    theta[:, 1, 2] = -2 * drop / size
    grid = F.affine_grid(theta, [n, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    grey = F.grid_sample(photos, grid, align_corners=False)
    alpha = (grey * 5).clamp(0, 1)
    shadow = F.avg_pool2d(F.pad(alpha, (6, 2, 6, 2)), 9, 1) * 0.3
    light = torch.linspace(1.0, 0.86, IMAGE_SIZE).view(1, 1, -1, 1)
    background = palette[[s.background for s in chosen]].view(n, 3, 1, 1) * light * (1 - shadow)
    item = palette[[s.colour for s in chosen]].view(n, 3, 1, 1) * (0.4 + 0.6 * grey)
    return (background * (1 - alpha) + item * alpha).clamp(0, 1)


def some_scenes(items: Tensor, rng: random.Random) -> list[Scene]:
    """A random scene for each of the n items."""
    of_item = [list(group) for _, group in itertools.groupby(scenes(), lambda scene: scene.item)]
    return [rng.choice(of_item[item]) for item in items.tolist()]


def seeded(seed: int) -> tuple[torch.Generator, random.Random]:
    """The generators that `random_images` and `image_batches` take."""
    return torch.Generator().manual_seed(seed), random.Random(seed)


def random_images(
    photos: Tensor, items: Tensor, n: int, generator: torch.Generator, rng: random.Random
) -> tuple[Tensor, list[Scene]]:
    """n random photographs in random scenes -> images [n, 3, 64, 64] in [0, 1], scenes."""
    rows = torch.randint(0, len(photos), (n,), generator=generator)
    chosen = some_scenes(items[rows], rng)
    return draw(photos[rows], chosen, generator), chosen


def image_batches(
    photos: Tensor, items: Tensor, batch_size: int, generator: torch.Generator, rng: random.Random
) -> Iterator[tuple[Tensor, list[Scene]]]:
    """Every photograph once, in order, in a random scene, in batches as `random_images` makes them."""
    for batch, batch_items in zip(photos.split(batch_size), items.split(batch_size), strict=True):
        chosen = some_scenes(batch_items, rng)
        yield draw(batch, chosen, generator), chosen
