"""Manifests, and files and folders that are whole or not there."""

import errno
import json
import os
import pickle
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import inside, new_folder, read_json, replacing, write_json
from rcdeploy_runtime.manifest import SCHEMA_VERSION, Manifest


def written(folder: Path) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"12345")
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep/b.bin").write_bytes(b"678")
    manifest = Manifest("run", recipe={"name": "x"}, teacher={"id": "t", "revision": "r"}, facts={"steps": 3})
    for name in ("a.bin", "deep/b.bin"):
        manifest.add_file(folder, name)
    manifest.write(folder)
    return manifest


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = written(tmp_path / "run")
    assert Manifest.read(tmp_path / "run", "run") == manifest
    assert manifest.files["a.bin"]["size"] == 5
    assert manifest.wrong_files(tmp_path / "run") == []


def test_what_is_no_manifest_of_this_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RcdeployError, match=r"no manifest\.json"):
        Manifest.read(folder, "run")
    written(folder)
    with pytest.raises(RcdeployError, match="is a run, not a package"):
        Manifest.read(folder, "package")
    data = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**data, "schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(RcdeployError, match="schema version 2") as caught:
        Manifest.read(folder, "run")
    assert caught.value.fix == "Upgrade rcdeploy."
    for text, said in (
        ("{", "is not JSON"),
        ("[]", "no manifest of rcdeploy"),
        ('{"kind": "else"}', "no manifest of rcdeploy"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(RcdeployError, match=said):
            Manifest.read(folder, "run")


@dataclass(frozen=True)
class Part:
    step: int
    error: float


@dataclass(frozen=True)
class Facts:
    steps: int
    rate: float = 0.5
    name: str | None = None
    size: tuple[int, int] | None = None
    parts: tuple[Part, ...] = ()
    precision: dict[str, str] | None = None


def test_facts_are_typed(tmp_path: Path) -> None:
    manifest = Manifest("run", facts={"steps": 3, "further": "ignored"})
    assert manifest.facts_as(Facts) == Facts(3)
    facts = {"steps": 3, "rate": 1, "name": "x", "size": [64, 32], "parts": [{"step": 1, "error": 2}]}
    manifest = Manifest("run", facts={**facts, "precision": {"unet": "int8"}})
    assert manifest.facts_as(Facts) == Facts(3, 1.0, "x", (64, 32), (Part(1, 2.0),), {"unet": "int8"})
    manifest.write(tmp_path)
    assert "source" not in json.loads((tmp_path / "manifest.json").read_text())
    assert Manifest.read(tmp_path, "run").facts_as(Facts) == manifest.facts_as(Facts)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "facts.steps: missing (expected a whole number)"),
        ({"steps": True}, "steps: expected a whole number, found True"),
        ({"steps": 1.5}, "steps: expected a whole number, found 1.5"),
        ({"steps": 1, "name": 5}, "name: expected a string or null, found 5"),
        ({"steps": 1, "size": [1, 2, 3]}, "size: expected a list of 2: a whole number, a whole number or null"),
        ({"steps": 1, "parts": [{"step": 1}]}, "parts[0].error: missing (expected a number)"),
        ({"steps": 1, "precision": {"unet": 8}}, "precision: expected an object or null"),
    ],
)
def test_facts_of_another_type_are_named(tmp_path: Path, facts: dict[str, Any], expected: str) -> None:
    Manifest("run", facts=facts).write(tmp_path)
    with pytest.raises(RcdeployError) as caught:
        Manifest.read(tmp_path, "run").facts_as(Facts)
    assert len(caught.value.errors) == 1 and expected.removeprefix("facts.") in caught.value.errors[0]
    assert str(tmp_path / "manifest.json") in caught.value.message


def test_an_error_is_data() -> None:
    error = RcdeployError("the recipe has 2 errors:", fix="Mend them.", errors=["a: missing", "b, c: 3 is above 2"])
    assert str(error) == "the recipe has 2 errors:\n  • a: missing\n  • b, c: 3 is above 2\nMend them."
    for again in (pickle.loads(pickle.dumps(error)), deepcopy(error), RcdeployError.from_json(error.to_json())):
        assert type(again) is RcdeployError and again.to_json() == error.to_json() and str(again) == str(error)
    assert str(RcdeployError("alone")) == "alone" and RcdeployError("alone").errors == ()
    assert RcdeployError.from_json({"message": "m"}).fix is None


def test_wrong_files_are_named(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"12346")
    assert manifest.wrong_files(tmp_path) == ["a.bin"]
    assert manifest.wrong_files(tmp_path, contents=False) == []
    (tmp_path / "a.bin").write_bytes(b"1234")
    (tmp_path / "deep/b.bin").unlink()
    assert manifest.wrong_files(tmp_path, contents=False) == ["a.bin", "deep/b.bin"]


def test_paths_cannot_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / "link").symlink_to(tmp_path / "outside")
    for path in ("../outside", str(tmp_path / "outside"), "link", "a/../../outside"):
        with pytest.raises(RcdeployError, match="points outside"):
            inside(folder, path)
    assert inside(folder, "a/b") == folder / "a/b"
    manifest = Manifest("run", files={"../outside": {"sha256": "", "size": 1}})
    with pytest.raises(RcdeployError, match="points outside"):
        manifest.wrong_files(folder)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as beside:
        beside.write_text("one")
    with pytest.raises(ValueError, match="midway"), replacing(path) as beside:
        beside.write_text("half of tw")
        raise ValueError("midway")
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("one", "two"):
        with new_folder(path) as beside:
            (beside / content).write_text(content)
    with pytest.raises(ValueError, match="midway"), new_folder(path) as beside:
        (beside / "three").write_text("three")
        raise ValueError("midway")
    assert [p.name for p in path.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_process_left_is_cleared_up(tmp_path: Path) -> None:
    nobody = 2**22 + 1  # above the largest process number
    (tmp_path / f".folder.{nobody}.part").mkdir()
    (tmp_path / f".folder.{nobody}.old").mkdir()
    (tmp_path / f".folder.{nobody}.old" / "kept").write_text("it was killed between two renames")
    (tmp_path / f".folder.{os.getppid()}.part").mkdir()
    with pytest.raises(ValueError, match="midway"), new_folder(tmp_path / "folder"):
        raise ValueError("midway")
    assert (tmp_path / "folder" / "kept").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".folder.{os.getppid()}.part", "folder"]


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RcdeployError, match="cannot write .*: No space left") as caught, replacing(tmp_path / "f"):
        full()
    assert "Free some room" in str(caught.value.fix)
    with pytest.raises(RcdeployError, match="No space left"), new_folder(tmp_path / "folder"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_read_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match=r"nowhere\.json is missing"):
        read_json(tmp_path / "nowhere.json")
