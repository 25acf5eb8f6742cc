"""The licence of a publication: its teacher's, as the teacher's README.md states it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdeploy_runtime.manifest import Manifest

from .publication import CARD, is_on_hub


@dataclass(frozen=True)
class Licence:
    """A licence for a model card.

    Attributes:
        id: as the hub spells it; None when it is unknown.
        details: license_name and license_link of an "other" one.
        sentence: for the card.
    """

    id: Any
    details: dict[str, str]
    sentence: str


def find_licence(manifest: Manifest, teacher: Path | None, reason: str, licence: str | None) -> Licence:
    """`license` in the front matter of the teacher's README.md; it is never guessed.

    Args:
        manifest: of the run or the package.
        teacher, reason: as local_teacher returns them.
        licence: the user's, which the card says is the user's.
    """
    if licence:
        return Licence(licence, {}, f"`{licence}`, as stated by the author of this card, not by the teacher's folder.")
    data: dict[str, Any] = {}
    if teacher is not None:
        data, reason = _front_matter(teacher, manifest)
    if not data.get("license"):
        return Licence(
            None,
            {},
            f"Unknown: the teacher's licence was not found ({reason}). This folder holds parts of the teacher and "
            "weights made with it. Before you use it or pass it on, read the teacher's licence, and whether it allows "
            "models made from it.",
        )
    details = {key: str(data[key]) for key in ("license_name", "license_link") if data.get(key)}
    link = f" ({details['license_link']})" if "license_link" in details else ""
    name = details.get("license_name", data["license"])
    return Licence(data["license"], details, f"The teacher's, `{name}`{link}, as the teacher's README.md states it.")


def _front_matter(teacher: Path, manifest: Manifest) -> tuple[dict[str, Any], str]:
    """The metadata of the teacher's README.md, and why there is no licence in it if there is none.

    Teachers of the hub are cached without their README.md: it is downloaded.
    """
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import ModelCard, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    readme = teacher / CARD
    try:
        if not readme.is_file() and is_on_hub(manifest):
            revision = manifest.recipe.get("teacher", {}).get("revision")
            readme = Path(hf_hub_download(manifest.teacher["id"], CARD, revision=revision))
        if not readme.is_file():
            return {}, "its folder has no README.md"
        return ModelCard.load(readme).data.to_dict(), "its README.md states none"
    except (HfHubHTTPError, LocalEntryNotFoundError):
        return {}, "its README.md could not be downloaded from the hub"
    except (ValueError, yaml.YAMLError):
        return {}, "the front matter of its README.md cannot be read"
