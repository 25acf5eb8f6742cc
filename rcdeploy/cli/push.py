"""rcdeploy push"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from .console import err, out, show_table
from .options import MODEL_FOLDER, QUIET

if TYPE_CHECKING:
    from ..report.publication import Publication


def push_command(
    folder: Path = MODEL_FOLDER,
    repo_id: str = typer.Argument(help="OWNER/NAME on the hub; made when it is not there.", show_default=False),
    private: bool = typer.Option(False, "--private", help="A repository that is made is private."),
    revision: str | None = typer.Option(
        None, "--revision", help="The branch, made when it is not there; main by default."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="List what would go up, and send nothing."),
    as_json: bool = typer.Option(False, "--json", help="Say what went (or would go) up as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Put a package, or a run's pipeline, on the model hub.

    Only what the manifest lists goes up, after every file was compared with its digest, and the model card: write it
    first with `rcdeploy card`. The token is the one of `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another hub.

    A run goes up as StableDiffusionPipeline.from_pretrained("OWNER/NAME") reads it, a package as
    TextToImage.load(snapshot_download("OWNER/NAME", local_dir="model")) does.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]

    from ..report.publication import Publication

    found = Publication.find(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RcdeployError(f"{repo_id!r} is no name on the hub: {error}", fix="For example: you/my-student") from None
    names = _names(found)
    sizes = {name: (found.root / name).stat().st_size for name in names}
    rows: list[dict[str, Any]] = [{"file": name, "bytes": size} for name, size in sizes.items()]
    quiet = quiet or as_json
    if not quiet:
        for remark in _remarks(found, names):
            err.print(remark, style="yellow", soft_wrap=True)
        megabytes = sum(sizes.values()) / 1e6
        title = f"{'would go' if dry_run else 'goes'} to {repo_id}: {len(rows)} files, {megabytes:,.1f} MB"
        show_table(title, ["file", "bytes"], rows, as_json=False)
    said: dict[str, Any] = {"repo_id": repo_id, "revision": revision or "main", "files": rows, "url": None}
    if not dry_run:
        if quiet:
            disable_progress_bars()
        said["url"] = _upload(found, repo_id, names, private, revision)
    if as_json:
        out.print_json(json.dumps(said))
    elif not dry_run:
        out.print(said["url"], soft_wrap=True)


def _names(found: Publication) -> list[str]:
    """What goes up, relative to found.root. Raises RcdeployError when a file is not what its manifest says."""
    from rcdeploy_runtime.manifest import NAME

    from ..report.publication import CARD, PICTURE

    if wrong := found.manifest.wrong_files(found.folder):
        raise RcdeployError(
            f"{found.folder} is not as it was written: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''} "
            "differ from the manifest",
            fix="Make it anew (a package: rcdeploy export; a changed card: rcdeploy card).",
        )
    # a run's manifest tells of a folder that does not go up; its card does not stand in it
    further = [NAME] if found.is_package else [n for n in (CARD, PICTURE) if (found.root / n).is_file()]
    return sorted({*found.files, *further})


def _remarks(found: Publication, names: list[str]) -> list[str]:
    from ..report.publication import CARD

    remarks = [] if CARD in names else [f"There is no model card in it; write one with: rcdeploy card {found.folder}"]
    recipe = found.manifest.recipe if found.is_package else {}
    teacher, prompts = recipe.get("teacher", {}), recipe.get("prompts", {})
    paths = [teacher.get("path", ""), *prompts.get("paired", []), *prompts.get("pool", [])]
    local = sorted({str(Path(p).parent) for p in paths if Path(p).is_absolute()})
    if local:
        remarks.append(f"manifest.json names folders of this machine: {', '.join(local)}")
    return remarks


def _upload(found: Publication, repo_id: str, names: list[str], private: bool, revision: str | None) -> str:
    """-> the address of the repository."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise RcdeployError("you are not logged in to the hub", fix="Run `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    with _hub_errors(api.endpoint, repo_id):
        repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision and revision != "main":
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=found.root,
            revision=revision,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message=f"{found.manifest.kind} {found.folder.resolve().name}, by rcdeploy",
        )
    return str(repo)


@contextmanager
def _hub_errors(endpoint: str, repo_id: str) -> Iterator[None]:
    """What the hub, the network or the card can be blamed for, as RcdeployError."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    again = "Run the same command again: what is there already is not sent twice."
    try:
        yield
    except OfflineModeIsEnabled:
        raise RcdeployError("HF_HUB_OFFLINE is set: nothing can be sent", fix="Unset it.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise RcdeployError(
                f"{endpoint} refuses {repo_id}: {error.server_message or f'status {status}'}",
                fix="Log in with a token that may write there: hf auth login, or HF_TOKEN.",
            ) from error
        raise RcdeployError(f"{endpoint} says of {repo_id}: {error}", fix=again) from error
    except ValueError as error:  # an answer that is none of a hub's, or what it has against the card
        raise RcdeployError(f"{endpoint} says of {repo_id}: {error}", fix=f"Is it a model hub? {again}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise RcdeployError(f"{endpoint} cannot be reached: {error}", fix=f"Look at the network. {again}") from error
