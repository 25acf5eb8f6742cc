"""The model to export: a run's pipeline, the newest run's, or any diffusers text-to-image folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcdeploy.judge_files import judge_of
from rcdeploy.model_config import pixels_per_latent, read_unet_config, size_multiple
from rcdeploy.model_folder import resolve
from rcdeploy.recipe_file import portable
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json, sha256
from rcdeploy_runtime.limits import MAX_GUIDANCE_SCALE
from rcdeploy_runtime.manifest import NAME, Manifest
from rcdeploy_runtime.noise_schedule import CONFIG_FILE, NoiseSchedule
from rcdeploy_runtime.samplers import make_sampler
from rcdeploy_runtime.sampling_defaults import SamplingDefaults, SamplingFacts

if TYPE_CHECKING:
    from rcdeploy.diffusion_model import LatentDiffusionModel


@dataclass(frozen=True)
class ExportSource:
    """A diffusers folder, and the run that wrote it where there is one.

    Args:
        name: for the package's folder.
        folder: in diffusers' layout.
        path: as the user named it.
        run: the manifest of the run, None for other folders.
    """

    name: str
    folder: Path
    path: Path
    run: Manifest | None

    @classmethod
    def open(cls, path: Path | None) -> ExportSource:
        """None: the newest finished run under runs/. Loads no torch.

        Raises RcdeployError when there is nothing to export.
        """
        model = resolve(path)
        if model.kind == "package":
            raise RcdeployError(
                f"{model.source} is already a package: it holds no weights to export from",
                fix="Export from the run or the diffusers folder that it was made from.",
            )
        if model.path is None:
            raise RcdeployError(
                f"{model.source} is the name of a student: it has no weights to export",
                fix="Give a run, or a diffusers folder.",
            )
        return cls(model.name, model.require_pipeline(), model.path, model.manifest)

    def load_model(self) -> LatentDiffusionModel:
        """The model, its configs checked; the networks are loaded when first used."""
        from rcdeploy.diffusion_model import LatentDiffusionModel

        return LatentDiffusionModel(str(self.folder))

    def check_size(self, option: str, size: tuple[int, int]) -> None:
        """Raises RcdeployError when the model cannot generate images of this (height, width), in pixels."""
        vae_config = read_json(self.folder / "vae" / "config.json")
        multiple = pixels_per_latent(vae_config) * size_multiple(read_unet_config(self.folder))
        if min(size) < multiple or size[0] % multiple or size[1] % multiple:
            raise RcdeployError(
                f"{option}: {size[0]}x{size[1]} is not possible, both must be multiples of {multiple} pixels"
            )

    @property
    def sampling(self) -> SamplingDefaults | None:
        """How the run records that its student wants to be sampled; None for other folders, and for old runs."""
        return self.run.facts_as(SamplingFacts).sampling if self.run else None

    def check_sampling(self, sampling: SamplingDefaults) -> None:
        """Raises RcdeployError for a sampler, steps or guidance that the model's noise schedule does not allow."""
        if not 0 <= sampling.guidance_scale <= MAX_GUIDANCE_SCALE:  # NaN too
            raise RcdeployError(
                f"--guidance-scale {sampling.guidance_scale:g}: 0 to {MAX_GUIDANCE_SCALE:g} are allowed"
            )
        schedule = NoiseSchedule.from_config(read_json(self.folder / CONFIG_FILE), str(self.folder / CONFIG_FILE))
        make_sampler(sampling.sampler, schedule, sampling.num_inference_steps, lambda: np.zeros(1))

    @property
    def teacher_folder(self) -> Path:
        """The folder where captions and a judge may stand: that of the run's teacher, else the exported one."""
        return Path(self.run.recipe["teacher"]["path"]) if self.run else self.folder

    @property
    def judge(self) -> Path | None:
        """The folder of the judge beside the teacher; None where there is none."""
        return judge_of(self.teacher_folder)

    def made_from(self) -> list[dict[str, str]]:
        return [{"kind": "run", "sha256": sha256(self.path / NAME)}] if self.run else []

    @property
    def recipe(self) -> dict[str, Any]:
        """The run's, without the folders of this machine: a package travels."""
        return portable(self.run.recipe) if self.run else {}
