"""Real images with captions: the table, how they are cropped, and their latents; images of given captions."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAIRED
from PIL import Image

from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.captioned_images import images_of_captions
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.real_images import captioned_images, encode_images
from rcdeploy.recipe import Recipe
from rcdeploy_runtime.errors import RcdeployError


def write_table(folder: Path, rows: Iterable[tuple[str, str]], header: tuple[str, ...] = ("file_name", "text")) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """0.png of 70 x 64 pixels, in colour; 1.png and sub/2.png in other modes."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    Image.fromarray(pixels[:, :, 0]).resize((100, 40)).save(folder / "1.png")
    Image.fromarray(pixels).convert("RGBA").save(folder / "sub/2.png")
    write_table(folder, [("0.png", PAIRED[0]), ("1.png", f" {PAIRED[1]}\n"), ("sub/2.png", "ein grünes Hemd")])
    return folder


def test_the_table_is_read_as_it_stands(images: Path) -> None:
    assert captioned_images(images) == [
        (images / "0.png", PAIRED[0]),
        (images / "1.png", PAIRED[1]),  # white space around a caption, and line breaks in it, are not part of it
        (images / "sub/2.png", "ein grünes Hemd"),
    ]


def test_a_folder_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match=r"has no metadata\.csv") as caught:
        captioned_images(tmp_path)
    assert "file_name and text" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (("file_name", "text"), []),
        (("file", "text"), [("0.png", "a")]),
        (("file_name", "caption"), [("0.png", "a")]),
    ],
)
def test_a_table_without_its_columns_or_rows(
    images: Path, header: tuple[str, str], rows: list[tuple[str, str]]
) -> None:
    write_table(images, rows, header)
    with pytest.raises(RcdeployError, match="needs the columns file_name and text, and at least one row"):
        captioned_images(images)


def test_missing_images_are_counted_and_the_first_is_named(images: Path) -> None:
    (images / "0.png").unlink()
    (images / "sub/2.png").unlink()
    with pytest.raises(RcdeployError, match=r"2 of 3 images are missing, the first is .*images/0\.png"):
        captioned_images(images)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png"])
def test_images_outside_the_folder_are_refused(images: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(images.parent / "secret.png")
    (images / "link.png").symlink_to(images.parent / "secret.png")
    write_table(images, [(name, "a red shirt")])
    with pytest.raises(RcdeployError, match="points outside"):
        captioned_images(images)


def test_latents_are_the_scaled_mode_of_the_posterior_of_the_central_square(images: Path, tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    shape = teacher.latent_shape()
    latents = encode_images(teacher, [images / "0.png"], shape)
    assert latents.shape == (1, 4, 8, 8)
    pixels = np.asarray(Image.open(images / "0.png")).astype(np.float32)
    square = torch.from_numpy(pixels[3:67]).permute(2, 0, 1)[None] / 127.5 - 1  # 70 x 64: cut, not resized
    with torch.no_grad():
        expected = teacher.vae.encode(square).latent_dist.mode() * 0.5
    assert torch.allclose(latents, expected, atol=1e-5)


def test_images_of_other_sizes_and_modes_are_encoded(images: Path, tiny_teacher: Path) -> None:
    teacher = LatentDiffusionModel(str(tiny_teacher))
    files = [images / "0.png", images / "1.png", images / "sub/2.png"]
    latents = encode_images(teacher, files, teacher.latent_shape(32))
    assert latents.shape == (3, 4, 4, 4)
    assert torch.allclose(latents[2], latents[0], atol=1e-5), "an opaque alpha channel changes nothing"


def test_a_folder_gives_the_images_of_captions(images: Path) -> None:
    pairs = list(images_of_captions(images, {PAIRED[1], "ein grünes Hemd", "a caption without an image"}))
    assert [captions for captions, _ in pairs] == [[PAIRED[1]], ["ein grünes Hemd"]]
    assert [tuple(pixels.shape) for _, pixels in pairs] == [(1, 3, 40, 100), (1, 3, 70, 64)]
    assert all(0 <= float(pixels.min()) < float(pixels.max()) <= 1 for _, pixels in pairs)


def test_a_latent_cache_gives_the_images_of_captions(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe()
    teacher = LatentDiffusionModel(recipe.teacher.path)
    cache = make_latent_cache(recipe, teacher)
    requested = {cache.prompts[i] for i in range(10)}
    pairs = list(images_of_captions(cache.folder, requested))
    captions = [caption for batch, _ in pairs for caption in batch]
    pixels = torch.cat([batch for _, batch in pairs])
    assert captions == cache.prompts.take(list(range(10)))
    assert torch.allclose(pixels, teacher.decode(cache.latents(range(10))), atol=1e-5)


def test_a_cache_whose_teacher_has_changed_is_refused(
    tiny_recipe: Callable[..., Recipe], tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    link = tmp_path / "teacher"
    link.symlink_to(tiny_teacher)
    recipe = tiny_recipe(teacher={"path": str(link)})
    folder = make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path)).folder
    link.unlink()
    link.symlink_to(other_teacher)
    with pytest.raises(RcdeployError, match="is not the one that made the latent cache"):
        list(images_of_captions(folder, {PAIRED[0]}))


def test_a_cache_of_real_images_holds_those_whose_caption_is_a_paired_prompt(
    images: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    recipe = tiny_recipe(cache={"source": "real", "images": "images"}, prompts={"paired_count": None})
    teacher = LatentDiffusionModel(recipe.teacher.path)
    cache = make_latent_cache(recipe, teacher)
    assert sorted(cache.prompts) == sorted(PAIRED[:2])
    row = list(cache.prompts).index(PAIRED[0])
    expected = encode_images(teacher, [images / "0.png"], cache.shape)
    assert torch.allclose(cache.latents([row]), expected, rtol=2e-3, atol=2e-3)
    assert cache.latents(range(2)).std() > 0


def test_a_cache_of_missing_or_foreign_images_is_refused(images: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(cache={"source": "real", "images": "images"})
    teacher = LatentDiffusionModel(recipe.teacher.path)
    (images / "1.png").unlink()
    with pytest.raises(RcdeployError, match=r"1 of 3 images are missing, the first is .*1\.png"):
        make_latent_cache(recipe, teacher)
    with (images / "metadata.csv").open("a") as file:
        file.write("../paired.txt,a red shirt\n")
    with pytest.raises(RcdeployError, match="points outside"):
        make_latent_cache(recipe, teacher)
