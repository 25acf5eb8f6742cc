"""An export that is interrupted or cannot write leaves nothing at its target, and reports what is true."""

from __future__ import annotations

import resource
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import listing
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy_export import package as package_module
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A process that a script starts in the background ignores SIGINT, and so would these tests in it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def press_ctrl_c_in_a_callback() -> None:
    """Python prints and discards what is raised in a weak reference's callback."""

    class Something:
        pass

    thing = Something()
    reference = weakref.ref(thing, lambda _dead: press_ctrl_c())
    del thing
    assert reference() is None


def press_ctrl_c_in_a_library_that_discards_it() -> None:
    try:
        press_ctrl_c()
    except KeyboardInterrupt:
        return


def press_ctrl_c_in_a_library_that_fails() -> None:
    try:
        press_ctrl_c()
    except KeyboardInterrupt:
        raise RcdeployError("unet: it cannot be exported to ONNX") from None


@pytest.mark.parametrize(
    ("step", "press"),
    [
        ("copy_configs", press_ctrl_c),
        ("export_onnx", press_ctrl_c),
        ("export_onnx", press_ctrl_c_in_a_callback),
        ("export_onnx", press_ctrl_c_in_a_library_that_discards_it),
        ("export_onnx", press_ctrl_c_in_a_library_that_fails),
        ("compare", press_ctrl_c_in_a_callback),
        ("package_manifest", press_ctrl_c_in_a_library_that_discards_it),
        ("package_manifest", press_ctrl_c),
    ],
)
def test_ctrl_c_leaves_nothing(
    step: str,
    press: Callable[[], None],
    copied_graphs: None,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = getattr(package_module, step)

    def interrupted(*arguments, **options):
        press()
        return original(*arguments, **options)

    monkeypatch.setattr(package_module, step, interrupted)
    handler = signal.getsignal(signal.SIGINT)
    result = CliRunner().invoke(app, ["export", str(small_model), "-o", "p"])
    assert result.exit_code == 130, result.output
    assert "Stopped: no package was written" in result.output
    assert listing(tmp_path) == {}
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_leaves_the_former_package(
    copied_graphs: None, package: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(package, tmp_path / "p")
    before = listing(tmp_path)
    monkeypatch.setattr(package_module, "compare", lambda *_: press_ctrl_c())
    result = CliRunner().invoke(app, ["export", str(small_model), "-o", "p"])
    assert result.exit_code == 130
    assert "is unchanged" in result.output
    assert listing(tmp_path) == before


def test_a_full_disk_keeps_nothing_and_does_not_claim_otherwise(
    copied_graphs: None, small_model: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # a graph is larger
    try:
        result = CliRunner().invoke(app, ["export", str(small_model), "-o", "p"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = result.exception
    assert isinstance(error, RcdeployError), result.output
    assert "cannot write" in error.message and "kept" not in str(error)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae"])
def test_links_that_leave_the_model_are_refused(
    name: str, copied_graphs: None, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_model, tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "model" / name).symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path)
    result = CliRunner().invoke(app, ["export", "model", "-o", "p"])
    assert isinstance(result.exception, RcdeployError), result.output
    assert "outside the model's folder" in result.exception.message
    assert listing(tmp_path) == before


def test_only_known_files_are_copied(copied_graphs: None, package: Path, small_model: Path, tmp_path: Path) -> None:
    shutil.copytree(small_model, tmp_path / "model")
    for name in ("scheduler/notes.txt", "unet/weights.bin", "vae/private.key", "secret.txt"):
        (tmp_path / "model" / name).write_text("not for others")
    result = CliRunner().invoke(app, ["export", "model", "-o", "p"])
    assert result.exit_code == 0, result.output
    names = {f.relative_to(tmp_path / "p") for f in (tmp_path / "p").rglob("*")}
    assert names == {f.relative_to(package) for f in package.rglob("*")}
