"""A package's digest: what it covers, that it pins a package, and that a new model card leaves it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy_runtime import RcdeployError, TextToImage
from rcdeploy_runtime.__main__ import main
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.package import Package

OTHER = "sha256:" + "0" * 64


@pytest.fixture
def copy(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(package, tmp_path / "copy"))


def reseal(folder: Path) -> None:
    """Make the manifest agree with the files again, as an attacker would."""
    manifest = Manifest.read(folder, "package")
    for name in manifest.files:
        manifest.add_file(folder, name)
    manifest.write(folder)


def archive(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def test_a_folder_and_its_archive_have_one_digest(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"sha256:{hashlib.sha256((copy / 'manifest.json').read_bytes()).hexdigest()}"
    for path in (copy, archive(copy)):
        result = CliRunner().invoke(app, ["package", "digest", str(path)])
        assert (result.exit_code, result.stdout.strip()) == (0, expected)
        as_json = CliRunner().invoke(app, ["package", "digest", str(path), "--json"])
        assert json.loads(as_json.stdout) == {"package": str(path), "digest": expected}
        assert main(["digest", str(path)]) == 0
        assert capsys.readouterr().out.strip() == expected
        assert Package(path, digest=expected).digest == expected
        assert Package(path, digest=expected.upper().replace("SHA", "sha")).digest == expected


def test_a_damaged_package_has_none(copy: Path) -> None:
    with (copy / "unet" / "model.onnx").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    result = CliRunner().invoke(app, ["package", "digest", str(copy)])
    assert isinstance(result.exception, RcdeployError) and "unet/model.onnx" in str(result.exception)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["unet/model.onnx", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_any_other_file_is_refused(copy: Path, name: str, zipped: bool) -> None:
    digest = Package(copy).digest
    with (copy / name).open("a") as file:
        file.write(" ")
    reseal(copy)
    path = archive(copy) if zipped else copy
    with pytest.raises(RcdeployError, match=f"is sha256:[0-9a-f]{{64}}, not {digest}") as caught:
        TextToImage.load(path, digest=digest)
    assert str(path) in caught.value.message and caught.value.fix


@pytest.mark.parametrize("zipped", [False, True])
def test_nothing_is_parsed_before(copy: Path, zipped: bool) -> None:
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RcdeployError, match=f"not {OTHER}"):
        Package(archive(copy) if zipped else copy, digest=OTHER)


@pytest.mark.parametrize("digest", ["", "sha256:", "0" * 64, "md5:" + "0" * 64, OTHER + "0", 7])
def test_what_is_no_digest(copy: Path, digest: str) -> None:
    with pytest.raises(RcdeployError, match="64 hex digits"):
        TextToImage.load(copy, digest=digest)


def test_a_digest_needs_verification(copy: Path) -> None:
    with pytest.raises(RcdeployError, match="verified"):
        TextToImage.load(copy, digest=Package(copy).digest, verify=False)


def test_the_command_lines_take_it(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["generate", str(copy), "a bag", "--steps", "1", "--out", str(tmp_path / "x.png"), "--digest"]
    assert main([*draw, OTHER]) == 2
    assert OTHER in capsys.readouterr().err and not (tmp_path / "x.png").exists()
    refused = CliRunner().invoke(app, [*draw, OTHER])
    assert isinstance(refused.exception, RcdeployError) and OTHER in str(refused.exception)
    assert main([*draw, Package(copy).digest]) == 0
    assert CliRunner().invoke(app, [*draw, Package(copy).digest]).exit_code == 0


def test_a_new_card_leaves_the_digest(copy: Path) -> None:
    digest = Package(copy).digest
    for licence in ("mit", "openrail"):
        assert CliRunner().invoke(app, ["card", str(copy), "--license", licence]).exit_code == 0
        assert Package(copy, digest=digest).manifest.digest == Package(copy).manifest.digest
