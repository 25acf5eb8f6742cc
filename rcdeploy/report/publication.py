"""What is published of a run or of a package: its files, its run and its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import sha256
from rcdeploy_runtime.manifest import NAME, Manifest

from ..model_folder import RUNS, resolve

CARD = "README.md"
SAMPLES = "samples.png"


@dataclass(frozen=True)
class Publication:
    """A run or a package as others would get it.

    Attributes:
        folder: as the user gave it.
        root: what is uploaded: a package as a whole, of a run its pipeline/, so that from_pretrained finds
            model_index.json at the top.
        manifest: of the folder.
        files: those that the manifest lists, relative to root.
    """

    folder: Path
    root: Path
    manifest: Manifest
    files: list[str]

    @property
    def is_package(self) -> bool:
        return self.manifest.kind == "package"

    @classmethod
    def resolve(cls, folder: Path) -> Publication:
        """Raises RcdeployError when the folder is neither a run nor a package's folder, or the run has not ended."""
        model = resolve(folder, kinds=("run", "package"))
        if model.manifest is None or model.path is None:
            raise RcdeployError(
                f"{folder} is a file; a model card is written into a package's folder",
                fix="Unpack the .zip, and give the folder.",
            )
        if model.kind == "package":
            return cls(folder, folder, model.manifest, sorted(model.manifest.files))
        root = model.require_pipeline()
        files = sorted(n.removeprefix("pipeline/") for n in model.manifest.files if n.startswith("pipeline/"))
        if not files:
            raise RcdeployError(
                f"{folder} has no finished pipeline/: its training has not ended",
                fix="Run the same rcdeploy distill command again; it resumes where it stopped.",
            )
        return cls(folder, root, model.manifest, files)

    @property
    def run(self) -> Manifest | None:
        """The manifest of the run: its own, or that of the run below runs/ (or of its later stage) that the package was
        made from."""
        if not self.is_package:
            return self.manifest
        digests = {origin["sha256"] for origin in self.manifest.made_from if origin["kind"] == "run"}
        for file in sorted([*RUNS.glob(f"*/{NAME}"), *RUNS.glob(f"*/*/{NAME}")]) if digests else []:
            if sha256(file) in digests:
                return Manifest.read(file.parent, "run")
        return None


def local_teacher(manifest: Manifest, folder: Path | None) -> tuple[Path | None, str]:
    """The teacher's folder on this machine if it is the one of the manifest; else None and the reason.

    Nothing is downloaded: a teacher of the hub is taken from the hub's cache.

    Args:
        manifest: of the run or the package.
        folder: the user's, instead of the one that the recipe leads to.

    Raises:
        RcdeployError: the user's folder is another model.
    """
    from ..diffusion_model import LatentDiffusionModel

    section = manifest.recipe.get("teacher", {})
    candidate = folder
    if candidate is None:
        path = section.get("path")
        if not path:
            return None, "the manifest names no folder of it"
        candidate = _cached_snapshot(path, section.get("revision")) if is_on_hub(manifest) else Path(path)
        if candidate is None or not candidate.is_dir():
            return None, "it is not on the machine where this card was written"
    if LatentDiffusionModel(str(candidate)).revision == manifest.teacher.get("revision"):
        return candidate, ""
    if folder:
        raise RcdeployError(
            f"{folder} is not the teacher: the manifest names {manifest.teacher.get('id')} with the digest "
            f"{manifest.teacher.get('revision')}, and this folder has another",
            fix="Give --teacher the folder that the recipe was run with, or that was exported.",
        )
    return None, "its folder now holds another model"


def is_on_hub(manifest: Manifest) -> bool:
    """Whether the teacher's id is a name on the hub; the id of a local one is its folder's name, without a slash."""
    return str(manifest.teacher.get("id", "")).count("/") == 1


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
