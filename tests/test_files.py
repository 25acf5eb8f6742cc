"""Whole-or-nothing files: what is synced, in which order, so that a power cut leaves old or new contents."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rcdeploy_runtime import files
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """("sync" | "rename", name) in order; names of temporary files without their process id."""
    recorded: list[tuple[str, str]] = []
    replace = Path.replace

    def plain(path: Path) -> str:
        return re.sub(rf"\.{os.getpid()}(-[0-9a-f]+)?\.", ".", path.name)

    def recording_replace(self: Path, target: Path) -> Path:
        recorded.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(files, "sync", lambda path: recorded.append(("sync", plain(path))))
    monkeypatch.setattr(Path, "replace", recording_replace)
    return recorded


def test_a_file_is_synced_before_its_rename_and_the_rename_after(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    files.write_json(tmp_path / "a.json", {})
    assert events == [("sync", ".a.json.part"), ("rename", "a.json"), ("sync", tmp_path.name)]


def test_a_folder_is_synced_with_all_that_it_holds(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    with files.new_folder(tmp_path / "new") as beside:
        (beside / "weights").mkdir()
        (beside / "weights" / "a.bin").write_bytes(b"a")
    assert {name for kind, name in events[:-2] if kind == "sync"} == {"weights", "a.bin", ".new.part"}
    assert events[-2:] == [("rename", "new"), ("sync", tmp_path.name)]


def test_nothing_is_renamed_when_the_disk_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("old")

    def fail(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(RcdeployError, match="Input/output error"):
        files.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
