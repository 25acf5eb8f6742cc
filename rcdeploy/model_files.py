"""Single files of a model folder that may be copied elsewhere: by name, and never through a link that leaves it."""

from __future__ import annotations

from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError


def model_file(folder: Path, relative: str) -> Path:
    """folder / relative, a regular file inside the folder.

    Links are followed inside the folder, and from a snapshot of the hub's cache into the blobs beside it. Raises
    RcdeployError when the file is missing, is not a regular file, or is a link to somewhere else.
    """
    path = folder / relative
    target = path.resolve()
    roots = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in roots):
        raise RcdeployError(
            f"{path} is a link to {target}, outside the model's folder: it is not copied",
            fix="Put the file itself there, if it belongs to the model.",
        )
    if not target.is_file():
        raise RcdeployError(f"{path} is missing" if not target.exists() else f"{path} is not a regular file")
    return path
