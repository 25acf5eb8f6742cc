"""What attempts start from: a small teacher, its captions and recipe, and a package."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

FORMATS = Path(__file__).resolve().parent.parent / "tests/fixtures/formats_0_1"
NAMES = ("teacher", "package", "paired.txt", "further.txt", "recipe.toml")


def make_materials(folder: Path) -> Path:
    """Copies of the small folders that the tests have too; shared by all worker processes, which do not change them."""
    folder.mkdir(parents=True)
    for name in NAMES:
        source = FORMATS / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copyfile(source, folder / name)
    return folder


def empty(folder: Path) -> Path:
    """The folder, with nothing in it; whatever an attempt left there, also without permissions."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
