"""Tensors on disk: truncated files are recognised, views are saved compactly, a full disk leaves what was there."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from rcdeploy.storage import tensors
from rcdeploy.storage.shards import missing_shards, shard_ranges
from rcdeploy.storage.tensors import is_whole, load_tensors, save_tensors
from rcdeploy_runtime.errors import RcdeployError

VALUES = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "x.safetensors", VALUES)
    return tmp_path / "x.safetensors"


def test_tensors_survive_a_round_trip(file: Path) -> None:
    loaded = load_tensors(file)
    assert loaded.keys() == VALUES.keys()
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in VALUES.items())
    assert is_whole(file)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_no_truncated_file_is_whole(file: Path) -> None:
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        assert not is_whole(file), size
    file.write_bytes(content + b"\0")
    assert not is_whole(file)
    file.write_bytes(content)
    assert is_whole(file)


@pytest.mark.parametrize(
    "header", ["[]", "{}", "1", '{"a": 1}', '{"a": {}}', '{"a": {"data_offsets": [0]}}', '{"a": ', "[" * 100_000]
)
def test_a_damaged_header_is_not_whole(tmp_path: Path, header: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert not is_whole(file)


def test_an_announced_header_of_exabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert not is_whole(file)


def test_what_is_not_there_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "missing")
    assert not is_whole(tmp_path)


def test_missing_shards_are_the_absent_and_the_truncated(file: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "y.safetensors"
    truncated.write_bytes(file.read_bytes()[:-1])
    assert missing_shards([file, truncated, tmp_path / "z.safetensors", file]) == [1, 2]
    assert shard_ranges(7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert shard_ranges(0, 3) == []


@pytest.mark.parametrize("content", [b"", b"\x08", b"not tensors at all, but long enough to have a length"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(RcdeployError, match=r"x\.safetensors cannot be read: "):
        load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(RcdeployError, match=r"missing\.safetensors cannot be read: "):
        load_tensors(tmp_path / "missing.safetensors")


def test_views_are_saved_compactly(tmp_path: Path) -> None:
    """A row of a large tensor takes the room of a row; a transposed one has its elements in order."""
    large = torch.arange(1000.0 * 100).view(1000, 100)
    save_tensors(tmp_path / "row.safetensors", {"row": large[3], "again": large[3]})
    assert (tmp_path / "row.safetensors").stat().st_size < 2 * 400 + 200
    save_tensors(tmp_path / "transposed.safetensors", {"t": large[:3, :2].T})
    assert torch.equal(load_tensors(tmp_path / "transposed.safetensors")["t"], large[:3, :2].T)
    parameter = torch.nn.Parameter(torch.ones(2))
    save_tensors(tmp_path / "parameter.safetensors", {"p": parameter})
    assert not load_tensors(tmp_path / "parameter.safetensors")["p"].requires_grad


def test_only_what_shares_its_storage_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(tensors, "save_file", lambda these, beside, _: (written.update(these), beside.touch()))
    whole, pair = torch.ones(3, 2), torch.ones(4)
    save_tensors(tmp_path / "file", {"whole": whole, "one": pair, "two": pair, "row": whole[1]})
    assert written["whole"].data_ptr() == whole.data_ptr() and written["one"].data_ptr() == pair.data_ptr()
    assert len({tensor.untyped_storage().data_ptr() for tensor in written.values()}) == 4
    assert torch.equal(written["two"], pair) and torch.equal(written["row"], whole[1])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_the_file_that_was_there(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = file.read_bytes()

    def full(_tensors: Any, path: Path, _metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(RcdeployError, match=r"cannot write .*x\.safetensors: .*No space left on device") as caught:
        save_tensors(file, {"a": torch.zeros(3)})
    assert "Free some room" in str(caught.value.fix)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_the_header_is_what_safetensors_defines(file: Path) -> None:
    """is_whole reads the format by itself: 8 bytes of length, JSON, data."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - length == 24 + 8
