"""Damaged archives, and packages with changed bytes whose manifest agrees: refused, or they work."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_package_hostile import change_manifest, copy

from rcdeploy_runtime import RcdeployError
from rcdeploy_runtime.package import Package

__all__ = ["copy"]


def archive_of(folder: Path, archive: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder).as_posix())
    return archive


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_could_take_memory(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="neither stored nor deflated"):
        Package(archive_of(copy, tmp_path / "bz2.zip", zipfile.ZIP_BZIP2))
    archive = archive_of(copy, tmp_path / "twice.zip")
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("unet/config.json", "{}")
    with pytest.raises(RcdeployError, match="more than once"):
        Package(archive)
    change_manifest(copy, "files", "unet/model.onnx", "size", value=2**35)
    with pytest.raises(RcdeployError, match="times its own size"):
        Package(archive_of(copy, tmp_path / "bomb.zip"))


def test_damaged_archives(copy: Path, tmp_path: Path) -> None:
    """Cut short, and with changed bytes, at places all over the file."""
    data = archive_of(copy, tmp_path / "whole.zip").read_bytes()
    Package(tmp_path / "whole.zip")
    random = np.random.default_rng(0)
    file = tmp_path / "damaged.zip"
    refused = 0
    for k in range(60):
        damaged = bytearray(data)
        if k % 3 == 0:
            damaged = damaged[: random.integers(len(data))]
        else:
            # every third at the end, where the directory is
            low = len(data) - 3000 if k % 3 == 1 else 0
            for at in random.integers(low, len(data), 3):
                damaged[at] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            Package(file)
        except RcdeployError:
            refused += 1
    assert refused > 40


def test_mutated_packages_are_refused_or_work(copy: Path) -> None:
    """Bytes changed in any file, the manifest made to agree: in a process of its own, where a crash would show."""
    code = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rcdeploy_runtime import RcdeployError, TextToImage
from test_package_hostile import reseal
folder = Path(sys.argv[1])
files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
rng = random.Random(0)
refused = 0
for k in range(40):
    file = rng.choice(files)
    data = file.read_bytes()
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 30))):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(changed)
    reseal(folder)
    try:
        TextToImage.load(folder, threads=1).generate("a bag", seed=1, num_inference_steps=1)
    except RcdeployError:
        refused += 1
    file.write_bytes(data)
print(refused)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(copy), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 5
