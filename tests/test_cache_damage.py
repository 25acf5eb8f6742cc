"""Damaged latent caches and prompt pools: found, named, and made again; what the user built is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rcdeploy import latent_cache
from rcdeploy.cache_latents import make_latent_cache
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.latent_cache import CacheFolder, LatentCache
from rcdeploy.prompts.pool import PromptPool
from rcdeploy.prompts.pool_builder import build_pool
from rcdeploy.prompts.recipe_pool import open_pool
from rcdeploy.recipe import Recipe
from rcdeploy.storage.tensors import DIGEST, is_whole, own_digest, recorded_digest, save_tensors
from rcdeploy_runtime import digests
from rcdeploy_runtime.digests import DigestCache
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import Manifest

RecipeOf = Callable[..., Recipe]
SHARD = "latents-00001.safetensors"


def flip(file: Path, at: int) -> None:
    """Flip one bit, and leave the file's modification time as it was."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(recipe: Recipe, remarks: list[str] | None = None) -> Path:
    log = (remarks if remarks is not None else []).append
    return make_latent_cache(recipe, LatentDiffusionModel(recipe.teacher.path), log=log).folder


def without_digests(folder: Path) -> None:
    """The cache as rcdeploy 0.1 wrote it: shards without metadata, digests in the manifest only."""
    manifest = Manifest.read(folder, "latent_cache")
    for file in folder.glob("latents-*.safetensors"):
        save_tensors(file, load_file(file))
        manifest.add_file(folder, file.name)
    del manifest.facts["prompts"]
    manifest.write(folder)


@pytest.mark.parametrize("place", ["first latent", "last byte", "shape", "digest", "key of the digest"])
def test_a_flipped_bit_of_a_shard(tiny_recipe: RecipeOf, place: str) -> None:
    recipe = tiny_recipe()
    folder = fill(recipe)
    before = contents(folder)
    data = before[SHARD]
    at = {
        "first latent": 8 + int.from_bytes(data[:8], "little"),
        "last byte": len(data) - 1,
        "shape": data.index(b"[5,4,8,8]") + 3,
        "digest": data.index(str(recorded_digest(folder / SHARD)).encode()),
        "key of the digest": data.index(DIGEST.encode()),
    }[place]
    flip(folder / SHARD, at)
    with pytest.raises(RcdeployError, match=rf"lacks 1 of 3 shards: {SHARD}\n"):
        LatentCache.open(folder)
    remarks: list[str] = []
    fill(recipe, remarks)
    assert any(SHARD in remark for remark in remarks)
    assert contents(folder) == before


def test_many_flipped_bits_are_all_found(tiny_recipe: RecipeOf) -> None:
    folder = fill(tiny_recipe())
    cache = CacheFolder.read(folder, DigestCache(remember=False))
    file = folder / SHARD
    whole = file.read_bytes()
    for at in range(0, len(whole), 29):
        flip(file, at)
        assert not is_whole(file) or cache.has_changed(file), at
        file.write_bytes(whole)
    assert cache.missing() == []


def test_a_cache_of_rcdeploy_0_1(tiny_recipe: RecipeOf) -> None:
    """The digests of its manifest are compared; unfinished ones have none, and open."""
    recipe = tiny_recipe()
    folder = fill(recipe)
    whole = contents(folder)
    without_digests(folder)
    old = contents(folder)
    fill(recipe)
    assert contents(folder) == old, "nothing to do"
    flip(folder / SHARD, -1)
    fill(recipe)
    assert (folder / SHARD).read_bytes() == whole[SHARD], "made again, now with a digest"
    assert Manifest.read(folder, "latent_cache").wrong_files(folder) == []
    assert (folder / "latents-00000.safetensors").read_bytes() == old["latents-00000.safetensors"]

    manifest = Manifest.read(folder, "latent_cache")
    manifest.files = {}
    manifest.write(folder)
    fill(recipe)
    assert (folder / "latents-00000.safetensors").read_bytes() == old["latents-00000.safetensors"]


def test_digests_are_computed_once(tiny_recipe: RecipeOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    folder = fill(tiny_recipe())
    assert CacheFolder.read(folder).digests.digests == {}, "files that just changed are read again"
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)
    assert CacheFolder.read(folder).missing() == []
    read: list[Path] = []

    def own_digest_counted(file: Path) -> str:
        read.append(file)
        return own_digest(file)

    own_digest_counted.__name__ = own_digest.__name__
    monkeypatch.setattr(latent_cache, "own_digest", own_digest_counted)
    assert CacheFolder.read(folder).missing() == [] and read == []
    assert CacheFolder.read(folder, DigestCache(remember=False)).missing() == [] and len(read) == 3
    flip(folder / SHARD, -1)
    assert CacheFolder.read(folder).missing() == [1] and read[3:] == [folder / SHARD]


@pytest.mark.parametrize("name", ["prompts.bin", "offsets.bin", "manifest.json"])
@pytest.mark.parametrize("old", [False, True])
def test_prompts_of_a_cache_are_built_again(tiny_recipe: RecipeOf, name: str, old: bool) -> None:
    recipe = tiny_recipe()
    folder = fill(recipe)
    if old:
        without_digests(folder)
    before = contents(folder)
    flip(folder / "prompts" / name, 9)
    with pytest.raises(RcdeployError, match="prompts"):
        LatentCache.open(folder)
    remarks: list[str] = []
    fill(recipe, remarks)
    assert len(remarks) == 1 and str(folder / "prompts") in remarks[0]
    assert contents(folder) == before


def test_half_a_pool_of_a_killed_process_is_replaced(tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    """And what a user has beside the cache stays, also under the name that earlier versions used."""
    for name in (".all_prompts", "all_prompts"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "prompts.bin").write_bytes(b"half")
    folder = fill(tiny_recipe())
    assert not (folder / ".all_prompts").exists()
    assert contents(folder / "all_prompts") == {"prompts.bin": b"half"}


def test_prompts_of_which_no_copy_is_whole(tiny_recipe: RecipeOf) -> None:
    recipe = tiny_recipe()
    folder = fill(recipe)
    flip(folder / "prompts" / "prompts.bin", 1)
    flip(folder / "prompts.txt", 1)
    before = contents(folder)
    with pytest.raises(RcdeployError, match=r"prompts and .*prompts\.txt have both changed") as caught:
        fill(recipe)
    assert str(folder) in str(caught.value.fix) and contents(folder) == before


@pytest.mark.parametrize("name", ["prompts.bin", "offsets.bin", "manifest.json"])
def test_a_pool_of_a_recipe_is_built_again(tiny_recipe: RecipeOf, name: str) -> None:
    recipe = tiny_recipe()
    with open_pool(recipe) as pool:
        folder, digest = pool.folder, pool.digest
    before = contents(folder)
    flip(folder / name, 9)
    remarks: list[str] = []
    with open_pool(recipe, remarks.append) as pool:
        assert pool.digest == digest
    assert str(folder) in remarks[0] and remarks[0].endswith("it is built again")
    assert contents(folder) == before
    assert not list(folder.parent.glob("*.claim"))


def test_a_pool_that_the_user_built_is_refused_by_name(tiny_recipe: RecipeOf, tmp_path: Path) -> None:
    tiny_recipe()  # writes paired.txt
    with build_pool([tmp_path / "paired.txt"], tmp_path / "mine") as pool:
        digest = pool.digest
    recipe = tiny_recipe(prompts={"pool": [str(tmp_path / "mine")]})
    with open_pool(recipe) as pool:
        assert pool.digest == digest
    flip(tmp_path / "mine" / "prompts.bin", 1)
    before = contents(tmp_path / "mine")
    with pytest.raises(RcdeployError, match=r"mine is damaged: prompts\.bin has changed") as caught:
        open_pool(recipe)
    assert "rcdeploy prompts build" in str(caught.value.fix)
    assert contents(tmp_path / "mine") == before
    with PromptPool.open(tmp_path / "mine"):
        pass  # in itself opening stays O(1)


def test_a_shard_of_another_digest_is_named_by_the_whole_file(tmp_path: Path) -> None:
    """The digest covers header and data, and is that of no other place in the file."""
    import torch

    file = tmp_path / "x.safetensors"
    save_tensors(file, {"a": torch.arange(7.0)}, digest=True)
    assert recorded_digest(file) == own_digest(file) != sha256(file)
    assert load_file(file)["a"].tolist() == list(range(7))
    save_tensors(file, {"a": torch.arange(7.0)})
    assert recorded_digest(file) is None
