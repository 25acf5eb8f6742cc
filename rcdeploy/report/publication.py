"""What goes to a model hub, of a run or of a package, and under whose licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.manifest import NAME, Manifest

CARD, PICTURE = "README.md", "samples.png"


@dataclass(frozen=True)
class Publication:
    """A run or a package as others would get it.

    folder: as the user gave it. root: what goes to the hub: a package whole, of a run its pipeline/, so that
    from_pretrained finds model_index.json at the top. files: what the manifest lists, relative to root.
    """

    folder: Path
    root: Path
    manifest: Manifest
    files: list[str]

    @property
    def is_package(self) -> bool:
        return self.manifest.kind == "package"

    @classmethod
    def find(cls, folder: Path) -> Publication:
        """Raises RcdeployError when the folder is neither a run nor a package, or the run has not ended."""
        data = read_json(folder / NAME) if (folder / NAME).is_file() else {}
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind not in ("run", "package"):
            raise RcdeployError(
                f"{folder} is neither a run nor a package"
                + (f", but a {kind}" if kind else f": it has no {NAME} of ours"),
                fix="Give a folder that rcdeploy distill or rcdeploy export wrote, for example runs/quickstart.",
            )
        manifest = Manifest.read(folder, kind)
        if kind == "package":
            return cls(folder, folder, manifest, sorted(manifest.files))
        files = sorted(n.removeprefix("pipeline/") for n in manifest.files if n.startswith("pipeline/"))
        if not files:
            raise RcdeployError(
                f"{folder} has no finished pipeline/: its training has not ended",
                fix="Run the same rcdeploy distill command again; it goes on where it stopped.",
            )
        return cls(folder, folder / "pipeline", manifest, files)


def run_of(found: Publication) -> Manifest | None:
    """The manifest of the run: its own, or that of the run under runs/ that the package was made from."""
    if not found.is_package:
        return found.manifest
    digests = {m["sha256"] for m in found.manifest.made_from if m["kind"] == "run"}
    for file in sorted(Path("runs").glob(f"*/{NAME}")) if digests else []:
        if sha256(file) in digests:
            return Manifest.read(file.parent, "run")
    return None


def teacher_folder(manifest: Manifest, given: Path | None) -> tuple[Path | None, str]:
    """The teacher's folder on this machine, if it is still the one that the manifest means; else None, and why not.

    Nothing is fetched: a teacher from the hub is looked for in the hub's cache. Raises RcdeployError when the `given`
    one is another model.
    """
    from ..diffusion_model import LatentDiffusionModel

    named, folder = manifest.recipe.get("teacher", {}), given
    if folder is None:
        path = named.get("path")
        if not path:
            return None, "the manifest names no folder of it"
        folder = _cached(path, named.get("revision")) if on_hub(manifest) else Path(path)
        if folder is None or not folder.is_dir():
            return None, "it is not on the machine where this card was written"
    if LatentDiffusionModel(str(folder)).revision == manifest.teacher.get("revision"):
        return folder, ""
    if given:
        raise RcdeployError(
            f"{given} is not the teacher: the manifest says {manifest.teacher.get('id')} with the digest "
            f"{manifest.teacher.get('revision')}, and this folder has another",
            fix="Give --teacher the folder that the recipe was run with, or that was exported.",
        )
    return None, "its folder now holds another model"


def on_hub(manifest: Manifest) -> bool:
    """Is the teacher's id a name on the hub? The id of a local one is its folder's name, which has no slash."""
    return str(manifest.teacher.get("id", "")).count("/") == 1


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


@dataclass(frozen=True)
class Licence:
    """id: as the hub spells it, None when it is unknown. more: license_name and license_link of an "other" one.
    sentence: for the card."""

    id: Any
    more: dict[str, str]
    sentence: str


def find_licence(manifest: Manifest, folder: Path | None, reason: str, said: str | None) -> Licence:
    """The teacher's: `license` in the front matter of its README.md; never guessed.

    folder, reason: as teacher_folder returns them. said: the user's word, which the card calls that.
    """
    if said:
        return Licence(said, {}, f"`{said}`, as given by whoever wrote this card; not read from the teacher's folder.")
    data: dict[str, Any] = {}
    if folder is not None:
        data, reason = _front_matter(folder, manifest)
    if not data.get("license"):
        return Licence(
            None,
            {},
            f"Unknown: the teacher's licence was not found ({reason}). This folder holds parts of the teacher and "
            "weights made with it. Before you use it or pass it on, read the teacher's licence, and whether it allows "
            "models made from it.",
        )
    more = {key: str(data[key]) for key in ("license_name", "license_link") if data.get(key)}
    link = f" ({more['license_link']})" if "license_link" in more else ""
    name = more.get("license_name", data["license"])
    return Licence(data["license"], more, f"The teacher's, `{name}`{link}, as the teacher's README.md states it.")


def _front_matter(folder: Path, manifest: Manifest) -> tuple[dict[str, Any], str]:
    """What the README.md of the teacher's folder says of itself, and why there is no licence in it if there is none.

    Teachers from the hub are kept without their README.md: it is fetched.
    """
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import ModelCard, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    readme = folder / CARD
    try:
        if not readme.is_file() and on_hub(manifest):
            revision = manifest.recipe.get("teacher", {}).get("revision")
            readme = Path(hf_hub_download(manifest.teacher["id"], CARD, revision=revision))
        if not readme.is_file():
            return {}, "its folder has no README.md"
        return ModelCard.load(readme).data.to_dict(), "its README.md states none"
    except (HfHubHTTPError, LocalEntryNotFoundError):
        return {}, "its README.md could not be fetched from the hub"
    except (ValueError, yaml.YAMLError):
        return {}, "the front matter of its README.md cannot be read"
