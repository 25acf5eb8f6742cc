"""Packages from strangers: changed manifests, configs, tokenizers, graphs, files and archives."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from ..archives import hostile_archive
from ..attempts import Failed, Family, Place
from ..graphs import mutate_graph
from ..mutate import broken_json, harmed, json_text, mutated_json, replace_by_special
from ..tokenizer_files import mutate_tokenizer

ANY, REFUSED, SAME = "any end is right", "it must be refused", "the picture must be the same"
PROMPTS = ("a bag", "a bag", "", "a red shirt " * 50, "\u9ce5 \U0001f600 caf\u00e9 \u202e", "a" * 9_000, "\0")


@dataclass
class Package:
    """A copy of the package to mutate. target: what is loaded, the folder or an archive. secret: a file outside."""

    folder: Path
    secret: Path
    target: Path

    def reseal(self) -> None:
        """Make the manifest agree with the files, as an attacker would."""
        from rcdeploy_runtime.manifest import Manifest

        manifest = Manifest.read(self.folder, "package")
        manifest.files = {}
        manifest.add_files(self.folder)
        manifest.write(self.folder)


def run(place: Place, random: Random) -> None:
    original = place.materials / "package"
    reference = place.once("picture", lambda: _picture(original, "a bag", verify=True))
    secret = place.folder.parent / "secret.txt"
    secret.write_text("known to its owner only")
    folder = Path(shutil.copytree(original, "package"))
    package = Package(folder, secret, folder)
    mutation = random.choices([m for m, _ in MUTATIONS], [weight for _, weight in MUTATIONS])[0]
    words, right_end = mutation(package, random)
    prompt = "a bag" if right_end == SAME else random.choice(PROMPTS)
    verify = right_end != ANY or random.random() < 0.7
    place.describe(f"{words}{'' if verify else ' (verify=False)'}")
    before = _listing(package.target)
    picture = _picture(package.target, prompt, verify=verify)
    if right_end == REFUSED:
        raise Failed("it was accepted")
    if right_end == SAME and picture != reference:
        raise Failed("it was accepted, and the picture is another")
    if _listing(package.target) != before:
        raise Failed("loading it changed its files")


def _picture(path: Path, prompt: str, *, verify: bool) -> bytes:
    from rcdeploy_runtime import TextToImage

    model = TextToImage.load(path, device="cpu", threads=1, verify=verify)
    images, _ = model.generate(prompt, seed=1, num_inference_steps=1)
    array = np.asarray(images[0])
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise Failed(f"the picture is an array of {array.shape}, {array.dtype}")
    return array.tobytes()


def _listing(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(f), os.lstat(f).st_size, os.lstat(f).st_mtime_ns) for f in files if not f.is_dir()]


def _manifest(package: Package, random: Random) -> tuple[str, str]:
    file = package.folder / "manifest.json"
    if random.random() < 0.15:
        data, words = broken_json(random, file.read_bytes())
        file.write_bytes(data)
    else:
        value, words = mutated_json(random, json.loads(file.read_bytes()))
        file.write_bytes(json_text(value))
    return f"manifest: {words}", ANY


def _config(package: Package, random: Random) -> tuple[str, str]:
    names = sorted(str(f.relative_to(package.folder)) for f in package.folder.rglob("*.json"))
    weights = {"scheduler/scheduler_config.json": 6, "tokenizer/tokenizer_config.json": 4, "manifest.json": 0}
    name = random.choices(names, [weights.get(n, 1) for n in names])[0]
    file = package.folder / name
    if random.random() < 0.15:
        data, words = broken_json(random, file.read_bytes())
        file.write_bytes(data)
    else:
        value, words = mutated_json(random, json.loads(file.read_bytes()))
        file.write_bytes(json_text(value))
    package.reseal()
    return f"{name}: {words}", ANY


def _tokenizer(package: Package, random: Random) -> tuple[str, str]:
    words = mutate_tokenizer(package.folder / "tokenizer/tokenizer.json", random)
    package.reseal()
    return f"tokenizer.json: {words}", ANY


def _graph(package: Package, random: Random) -> tuple[str, str]:
    name = random.choice(("text_encoder", "unet", "unet", "vae_decoder"))
    words = mutate_graph(package.folder / name / "model.onnx", random, package.secret)
    package.reseal()
    return f"{name}: {words}", ANY


def _bytes(package: Package, random: Random) -> tuple[str, str]:
    """Bytes changed; sometimes the manifest is made to agree."""
    files = [f for f in sorted(package.folder.rglob("*")) if f.is_file() and f.name != "manifest.json"]
    file = random.choice(files)
    data, words = harmed(random, file.read_bytes())
    file.write_bytes(data)
    resealed = random.random() < 0.6
    if resealed:
        package.reseal()
    return (
        f"{file.relative_to(package.folder)}: {words}{', and the manifest agrees' if resealed else ''}",
        ANY if resealed else REFUSED,
    )


def _special(package: Package, random: Random) -> tuple[str, str]:
    files = [f for f in sorted(package.folder.rglob("*")) if f.is_file()]
    file = random.choice(files)
    words = replace_by_special(random, file, package.secret)
    return f"{file.relative_to(package.folder)}: {words}", REFUSED


def _unlisted(package: Package, random: Random) -> tuple[str, str]:
    """Files that the manifest does not list change nothing."""
    name = random.choice(("unet/model.onnx.data", "unet/weights", "evil.py", "tokenizer/vocab.txt", "a/b/c.onnx"))
    file = package.folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if random.random() < 0.3:
        file.symlink_to(package.secret)
    else:
        file.write_bytes(random.randbytes(1000))
    return f"{name} lies there and is not listed", SAME


def _archive(package: Package, random: Random) -> tuple[str, str]:
    package.target = Path("package.zip")
    return f"zip: {hostile_archive(package.folder, package.target, random)}", ANY


MUTATIONS: list[tuple[Callable[[Package, Random], tuple[str, str]], int]] = [
    (_manifest, 6),
    (_config, 5),
    (_tokenizer, 5),
    (_graph, 6),
    (_bytes, 4),
    (_special, 2),
    (_unlisted, 1),
    (_archive, 4),
]

FAMILY = Family("Packages", run, share=250, seconds=30)
