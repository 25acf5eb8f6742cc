"""Model folders by path or by their name on the Hugging Face hub, from which they are fetched once into its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rcdeploy_runtime.errors import RcdeployError

from .model_config import is_hub_name

NETWORK_FILES = ("*.json", "*.txt", "model*.safetensors")
"""of a repository that holds one network in transformers' layout"""


def local_folder(
    path: str | Path,
    patterns: Sequence[str] = NETWORK_FILES,
    *,
    ignore: Sequence[str] = (),
    revision: str | None = None,
    instead: str = "name a folder on this machine",
) -> Path:
    """The folder itself, or that of the hub's cache, downloaded if it is not there yet.

    Args:
        path: a folder, or OWNER/NAME of a repository.
        patterns, ignore: which of its files are fetched, and which of those are not.
        revision: branch, tag or commit.
        instead: what to do without the hub, for the message.

    Raises:
        RcdeployError: the path looks like a name on the hub, and there is no such repository or no network.
    """
    if not is_hub_name(str(path)):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(path), revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignore))
        )
    except Exception as error:
        raise RcdeployError(
            f"{path} is not a local folder and cannot be fetched from the hub: {error}",
            fix=f"Check the name and the network, or {instead}.",
        ) from error
