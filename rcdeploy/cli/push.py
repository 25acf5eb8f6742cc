"""rcdeploy push"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rcdeploy_runtime.errors import RcdeployError

from .console import print_json, print_line, print_warning, resumable, show_table
from .options import MODEL_FOLDER, QUIET

if TYPE_CHECKING:
    from ..report.publication import Publication

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RETRY = "Run the same command again: files that are there already are not sent twice."


def push_command(
    folder: Path = MODEL_FOLDER,
    repo_id: str = typer.Argument(
        help="The repository on the hub; created if it does not exist.", metavar="OWNER/NAME", show_default=False
    ),
    private: bool = typer.Option(False, "--private", help="Create the repository as a private one."),
    revision: str | None = typer.Option(
        None, "--revision", help="The branch; created if it does not exist.", show_default="main"
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="List what would be uploaded, and send nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print what was (or would be) uploaded as JSON."),
    quiet: bool = QUIET,
) -> None:
    """Upload a package, or a run's pipeline, to the model hub.

    Only the files that the manifest lists are uploaded, after every one was compared with its digest, and the model
    card: write it first with `rcdeploy card`. The token is that of `hf auth login`, or HF_TOKEN; HF_ENDPOINT names
    another hub.

    Others load a run as StableDiffusionPipeline.from_pretrained("OWNER/NAME"), and a package as
    TextToImage.load(snapshot_download("OWNER/NAME", local_dir="model")).
    """
    _check_repo_id(repo_id)
    from ..report.publication import Publication

    publication = Publication.resolve(folder)
    names = _file_names(publication)
    sizes = {name: (publication.root / name).stat().st_size for name in names}
    rows: list[dict[str, Any]] = [{"file": name, "bytes": size} for name, size in sizes.items()]
    quiet = quiet or as_json
    if not quiet:
        for remark in _remarks(publication, names):
            print_warning(remark)
        megabytes = sum(sizes.values()) / 1e6
        verb = "would be uploaded" if dry_run else "uploading"
        show_table(f"{repo_id}: {verb}: {len(rows)} files, {megabytes:,.1f} MB", ["file", "bytes"], rows, as_json=False)
    url = None
    if not dry_run:
        with resumable(f"The repository is unchanged until every file has arrived. {RETRY}"):
            url = _upload(publication, repo_id, names, private=private, revision=revision, quiet=quiet)
    if as_json:
        print_json({"repo_id": repo_id, "revision": revision or "main", "files": rows, "url": url})
    elif url:
        print_line(url)


def _check_repo_id(repo_id: str) -> None:
    """Raises RcdeployError for what is not OWNER/NAME."""
    example = "For example: you/my-student"
    if not REPO_ID.fullmatch(repo_id):
        raise RcdeployError(f"{repo_id!r} is no name on the hub: it must be OWNER/NAME", fix=example)
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RcdeployError(f"{repo_id!r} is no name on the hub: {error}", fix=example) from None


def _file_names(publication: Publication) -> list[str]:
    """The files to upload, relative to publication.root.

    Raises RcdeployError when a file is not as its manifest states, is no regular file, or lies outside the folder.
    """
    from rcdeploy_runtime.files import inside
    from rcdeploy_runtime.manifest import NAME

    from ..report.publication import CARD, SAMPLES

    if wrong := publication.manifest.wrong_files(publication.folder):
        raise RcdeployError(
            f"{publication.folder} has changed since it was written: {len(wrong)} files differ from the manifest",
            fix="Make it again (a package: rcdeploy export; a changed card: rcdeploy card).",
            errors=wrong,
        )
    # no manifest lists the card; a run's describes a folder that is not uploaded
    further = [
        name for name in (CARD, NAME if publication.is_package else SAMPLES) if (publication.root / name).exists()
    ]
    names = sorted({*publication.files, *further})
    for name in names:
        if not inside(publication.root, name).is_file():
            raise RcdeployError(f"{publication.root / name} is no regular file", fix="Remove it, or write it again.")
    return names


def _remarks(publication: Publication, names: list[str]) -> list[str]:
    from ..report.publication import CARD

    remarks = []
    if CARD not in names:
        remarks.append(f"It has no model card; write one with: rcdeploy card {publication.folder}")
    recipe = publication.manifest.recipe if publication.is_package else {}
    teacher = recipe.get("teacher", {})
    prompts = recipe.get("prompts", {})
    paths = [teacher.get("path", ""), *prompts.get("paired", []), *prompts.get("pool", [])]
    if local := sorted({str(Path(path).parent) for path in paths if Path(path).is_absolute()}):
        remarks.append(f"manifest.json names folders of this machine: {', '.join(local)}")
    return remarks


def _upload(
    publication: Publication, repo_id: str, names: list[str], *, private: bool, revision: str | None, quiet: bool
) -> str:
    """-> the address of the repository."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if get_token() is None:
        raise RcdeployError("you are not logged in to the hub", fix="Run `hf auth login`, or set HF_TOKEN.")
    if quiet:
        disable_progress_bars()
    api = HfApi()
    with _hub_errors(api.endpoint, repo_id):
        repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision and revision != "main":
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=publication.root,
            revision=revision,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message=f"{publication.manifest.kind} {publication.folder.resolve().name}, by rcdeploy",
        )
    return str(repo)


@contextmanager
def _hub_errors(endpoint: str, repo_id: str) -> Iterator[None]:
    """Errors of the hub, of the network or of the card, as RcdeployError."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

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
        raise RcdeployError(f"{endpoint}, {repo_id}: {error}", fix=RETRY) from error
    except ValueError as error:  # a reply that is none of a hub's, or its objections to the card
        raise RcdeployError(f"{endpoint}, {repo_id}: {error}", fix=f"Is it a model hub? {RETRY}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise RcdeployError(f"{endpoint} cannot be reached: {error}", fix=f"Check the network. {RETRY}") from error
