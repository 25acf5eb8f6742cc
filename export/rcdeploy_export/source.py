"""What is exported: a run, the newest run, or any diffusers text-to-image folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_folder import newest_run
from rcdeploy.recipe_file import portable
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.manifest import NAME, Manifest


@dataclass(frozen=True)
class Source:
    """name: for the package's folder. folder: in diffusers' layout. run: the manifest of its run, if it has one."""

    name: str
    folder: Path
    path: Path
    run: Manifest | None

    @classmethod
    def find(cls, path: Path | None) -> Source:
        """None: the newest finished run under runs/. Raises RcdeployError when there is nothing to export."""
        if path is None:
            path = newest_run(Path("runs"))
        if (path / NAME).is_file() and not (path / "model_index.json").is_file():
            manifest = Manifest.read(path, "run")
            if not (path / "pipeline" / "model_index.json").is_file():
                raise RcdeployError(
                    f"{path} has no pipeline/ yet: its training has not ended",
                    fix="Run the same rcdeploy distill command again; it goes on where it stopped.",
                )
            return cls(path.resolve().name, path / "pipeline", path, manifest)
        if (path / NAME).is_file() and read_json(path / NAME).get("kind") == "package":
            raise RcdeployError(
                f"{path} is a package already: it holds no weights to export from",
                fix="Export from the run or the diffusers folder it was made of.",
            )
        if (path / "model_index.json").is_file():
            return cls(path.resolve().name, path, path, None)
        raise RcdeployError(
            f"{path} is neither a run nor a diffusers folder: it has no {NAME} of ours and no model_index.json",
            fix="Give a folder under runs/, or one that StableDiffusionPipeline.save_pretrained wrote.",
        )

    def teacher(self) -> LatentDiffusionModel:
        """Opened and checked: the networks are loaded when first used."""
        return LatentDiffusionModel(str(self.folder))

    @property
    def judge(self) -> Path | None:
        """The judge beside the teacher, where there is one: the embedded teacher has it."""
        near = Path(self.run.recipe["teacher"]["path"]) if self.run else self.folder
        return near / "judge" if (near / "judge" / "config.json").is_file() else None

    def made_from(self) -> list[dict[str, str]]:
        return [{"kind": "run", "sha256": sha256(self.path / NAME)}] if self.run else []

    @property
    def recipe(self) -> dict[str, Any]:
        """The run's, without the folders of this machine: a package travels."""
        return portable(self.run.recipe) if self.run else {}
