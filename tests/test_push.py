"""rcdeploy push, with the real client against a local imitation of the hub that stores what it is sent.

The imitation implements what huggingface_hub requests of a hub (create, branch, preupload, LFS, commit), as far as we
know it: the tests show that files arrive intact, not that the hub itself accepts them. Its newer storage (Xet) is not
implemented: large files are sent by LFS, with HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.report.card import write_card
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.package import Package

TOKEN = "hf_stand_in"


class StandIn(ThreadingHTTPServer):
    """created: bodies of create_repo. files: (repository, branch) -> path -> bytes. large: LFS objects by sha256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.takes_large_files = True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None:
        """Not on the tests' terminal."""

    def answer(self, status: int, data: Any = None) -> None:
        body = json.dumps({} if data is None else data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_PUT(self) -> None:
        oid, body = self.path.rsplit("/", 1)[-1], self.body()
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400)
        self.server.large[oid] = body
        return self.answer(200)

    def do_POST(self) -> None:
        body, path = self.body(), self.path.split("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "this token may not write"})
        if path == "/api/repos/create":
            request = json.loads(body)
            self.server.created.append(request)
            return self.answer(200, {"url": f"{self.server.url}/{request['organization']}/{request['name']}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = {o["oid"]: {"upload": {"href": f"{self.server.url}/large/{o['oid']}"}} for o in objects}
            return self.answer(200, {"objects": [{**o, "actions": upload[o["oid"]]} for o in objects]})
        _, _, _, owner, name, what, branch = path.split("/")
        files = self.server.files.setdefault((f"{owner}/{name}", branch), {})
        if what == "preupload":
            return self.answer(200, {"files": [self.mode(f["path"]) for f in json.loads(body)["files"]]})
        if what == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":  # a KeyError here if the object never came
                    files[entry["value"]["path"]] = self.server.large[entry["value"]["oid"]]
            return self.answer(200, {"commitUrl": f"{self.server.url}/{owner}/{name}/commit/1", "commitOid": "1"})
        return self.answer(200 if what == "branch" else 404)

    def mode(self, path: str) -> dict[str, Any]:
        large = self.server.takes_large_files and path.endswith((".onnx", ".safetensors"))
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(*arguments: str, endpoint: str, token: str | None = TOKEN, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings when it is imported."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(Path("hf-home").resolve()), "COLUMNS": "200", **more}
    command = [sys.executable, "-m", "rcdeploy.cli.main", "push", *arguments]
    environment = {**inherited, **settings, **({"HF_TOKEN": token} if token else {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def package_with_card(package: Path, tmp_path: Path) -> Path:
    """A package with a card, and a file in its folder that the manifest does not list."""
    folder = Path(shutil.copytree(package, tmp_path / "toy"))
    write_card(folder)
    (folder / "notes.txt").write_text("for myself")
    return folder


@pytest.mark.parametrize("large", [True, False])
def test_the_package_arrives_byte_by_byte_and_nothing_else(
    hub: StandIn, package_with_card: Path, tmp_path: Path, large: bool
) -> None:
    hub.takes_large_files = large
    more = {"HF_HUB_DISABLE_XET": "1"} if large else {}
    options = ["--private", "--revision", "trial"] if large else []
    done = push(str(package_with_card), "house/toy", "--json", *options, endpoint=hub.url, **more)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["url"] == f"{hub.url}/house/toy"
    assert [m.get("visibility") for m in hub.created] == (["private"] if large else [None])
    arrived = hub.files["house/toy", "trial" if large else "main"]
    assert (
        set(arrived)
        == {*Manifest.read(package_with_card, "package").files, "manifest.json", "README.md"}
        == {f["file"] for f in result["files"]}
    )
    assert "README.md" in arrived and "notes.txt" not in arrived
    assert all((package_with_card / name).read_bytes() == content for name, content in arrived.items())
    assert bool(hub.large) == large
    for name, content in arrived.items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(content)
    Package(tmp_path / "there")


def test_dry_run_lists_files_and_sends_nothing(package_with_card: Path) -> None:
    result = CliRunner().invoke(app, ["push", str(package_with_card), "house/toy", "--dry-run", "--json"])
    files = {f["file"]: f["bytes"] for f in json.loads(result.output)["files"]}
    assert files["unet/model.onnx"] == (package_with_card / "unet/model.onnx").stat().st_size
    assert "notes.txt" not in files and json.loads(result.output)["url"] is None


def test_the_pipeline_of_a_run_is_uploaded(tmp_path: Path, tiny_teacher: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_teacher, run / "pipeline")
    manifest = Manifest(kind="run")
    for file in (run / "pipeline").rglob("*.*"):
        manifest.add_file(run, str(file.relative_to(run)))
    manifest.write(run)
    (run / "pipeline" / "README.md").write_text("# A card\n")
    result = CliRunner().invoke(app, ["push", str(run), "house/toy", "--dry-run", "--json"])
    files = {f["file"] for f in json.loads(result.output)["files"]}
    assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.safetensors"} <= files
    assert "manifest.json" not in files


def test_remarks_on_a_missing_card_and_on_folders_that_would_become_public(package: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(package, tmp_path / "toy"))
    manifest = Manifest.read(folder, "package")
    manifest.recipe = {"teacher": {"path": "/home/somebody/teacher"}}
    manifest.write(folder)
    remarks = CliRunner().invoke(app, ["push", str(folder), "house/toy", "--dry-run"]).stderr
    assert "no model card" in remarks and "/home/somebody" in remarks


def test_a_changed_file_is_not_uploaded(package_with_card: Path) -> None:
    (package_with_card / "unet" / "config.json").write_text("{}")
    with pytest.raises(RcdeployError, match="has changed") as caught:
        CliRunner().invoke(app, ["push", str(package_with_card), "house/toy", "--dry-run"], catch_exceptions=False)
    assert caught.value.errors == ("unet/config.json",)


@pytest.mark.parametrize("repo_id", ["toy", "/toy", "house/", "a/b/c", "-a/b", "house/to y"])
def test_a_name_without_owner_is_an_error_before_anything_else(repo_id: str) -> None:
    with pytest.raises(RcdeployError, match="is no name on the hub"):
        CliRunner().invoke(app, ["push", "nowhere", "--", repo_id], catch_exceptions=False)


def test_links_that_leave_the_folder_are_not_uploaded(package_with_card: Path, tmp_path: Path) -> None:
    """The target has the digest of the manifest, so that only its place is wrong."""
    config = package_with_card / "unet" / "config.json"
    config.rename(tmp_path / "secret.json")
    config.symlink_to(tmp_path / "secret.json")
    with pytest.raises(RcdeployError, match="points outside"):
        CliRunner().invoke(app, ["push", str(package_with_card), "house/toy", "--dry-run"], catch_exceptions=False)


def test_every_failure_is_one_panel(hub: StandIn, package_with_card: Path, tmp_path: Path) -> None:
    target = [str(package_with_card), "house/toy", "-q"]
    with StandIn() as closed:
        nobody = closed.url
    for done, message in (
        (push(*target, endpoint=hub.url, token=None), "not logged in"),
        (push(*target, endpoint=hub.url, token="hf_wrong"), "this token may not write"),
        (push(*target, endpoint=nobody), "cannot be reached"),
        (push(*target, endpoint=hub.url, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE"),
        (push(str(tmp_path), "house/toy", endpoint=hub.url), "neither a run, nor a package"),
        (push(str(package_with_card), "no such name", endpoint=hub.url), "no name on the hub"),
    ):
        assert done.returncode == 2, done.stderr
        text = " ".join(done.stderr.replace("│", " ").split())
        assert message in text and "Traceback" not in done.stderr, done.stderr
    assert not hub.files
