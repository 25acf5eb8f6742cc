"""Who imports whom, what importing does, and that the two distributions agree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "rcdeploy_runtime": ROOT / "runtime/rcdeploy_runtime",
    "rcdeploy": ROOT / "rcdeploy",
    "rcdeploy_export": ROOT / "export/rcdeploy_export",
}
FILES = [f for folder in ROOMS.values() for f in sorted(folder.rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """Absolute names of everything the file imports, anywhere in it."""
    room = next(f for f in ROOMS.values() if file.is_relative_to(f))
    package = [room.name, *file.relative_to(room).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_the_runtime_imports_nothing_heavy_and_none_of_ours() -> None:
    allowed = {"numpy", "tokenizers", "PIL", "onnxruntime", "rcdeploy_runtime", *sys.stdlib_module_names}
    extras = {"openvino_session.py": {"openvino"}, "trt_session.py": {"cuda"}, "trt_engines.py": {"cuda"}}
    for file in ROOMS["rcdeploy_runtime"].rglob("*.py"):
        assert {name.split(".")[0] for name in imported(file)} <= allowed | extras.get(file.name, set()), file


def test_export_stands_above_the_workstation() -> None:
    for file in ROOMS["rcdeploy"].rglob("*.py"):
        if not file.is_relative_to(ROOT / "rcdeploy/cli"):
            assert not [n for n in imported(file) if n.startswith("rcdeploy_export")], file


def test_nobody_imports_the_commands() -> None:
    for file in FILES:
        if not file.is_relative_to(ROOT / "rcdeploy/cli") and file != ROOT / "rcdeploy/__main__.py":
            assert not [n for n in imported(file) if n.startswith("rcdeploy.cli")], file


def test_no_pickle_is_ever_read() -> None:
    for file in FILES:
        assert not {"pickle", "joblib", "shelve", "marshal"} & {n.split(".")[0] for n in imported(file)}, file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "pickle", "np", "numpy"), f"{file}:{node.lineno}"


def test_both_distributions_have_one_version_and_the_devices_needs_are_ours_too() -> None:
    root, runtime = (tomllib.loads((ROOT / p).read_text()) for p in ("pyproject.toml", "runtime/pyproject.toml"))
    places = [
        (ROOT / p / d["tool"]["hatch"]["version"]["path"]).resolve() for p, d in ((".", root), ("runtime", runtime))
    ]
    assert places[0] == places[1]

    def names(data: dict) -> set[str]:
        return {re.split(r"[<>=~!\[; ]", d)[0] for d in data["project"]["dependencies"]}

    assert names(runtime) <= names(root)


LIGHT = ["rcdeploy.recipe", "rcdeploy.student.spec", "rcdeploy.cli.main", "rcdeploy_runtime.manifest"]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts)
        for f in sorted((ROOT / "rcdeploy").rglob("*.py"))
        if f.name != "__init__.py"
    ]
    code = (
        "import os\n"
        # torch and its friends set variables of their own
        "import torch, diffusers, transformers, accelerate, matplotlib\n"
        "before = dict(os.environ)\n"
        + "".join(f"import {m}\n" for m in modules)
        + "assert dict(os.environ) == before\n"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert list(tmp_path.iterdir()) == []
