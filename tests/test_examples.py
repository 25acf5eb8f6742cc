"""The programs that users copy, run as they would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

EMBED = Path(__file__).parent.parent / "examples/embed"


def call(name: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(EMBED / name), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_draw(package: Path, tmp_path: Path) -> None:
    assert "seed 7" in call("draw.py", str(package), "a red bag")
    assert Image.open(tmp_path / "out.png").size == (64, 64)


def test_studio(package: Path, tmp_path: Path) -> None:
    call("studio.py", str(package), "a red bag", "a blue bag", "a coat", "--out", "drawn")
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["0.png", "1.png", "2.png"]
