"""Who may import whom: every room has its floor, imports run downwards only, and there is no circle of files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "rcdeploy_runtime": ROOT / "runtime/rcdeploy_runtime",
    "rcdeploy": ROOT / "rcdeploy",
    "rcdeploy_export": ROOT / "export/rcdeploy_export",
}
FLOORS = [
    ["rcdeploy_runtime"],
    # foundations
    ["random_streams"],
    ["guidance"],
    ["condition", "machine", "progress", "units"],
    ["judge_files", "model_config", "model_files", "model_trial", "plots", "storage", "toml_files", "vae"],
    ["hub", "model_index", "text_encoding"],
    # students are rules over a teacher's config; recipes name them
    ["student"],
    ["recipe_section"],
    ["recipe_stages", "recipe_student"],
    ["recipe"],
    ["recipe_checks"],
    ["recipe_file"],
    # models
    ["diffusers_pipeline", "diffusion_model", "model_folder"],
    ["checkpoint_import", "model_description", "sampling"],
    # data, and folders of runs
    ["checkpoint", "conditioning", "prompts", "real_images", "run_folder"],
    ["latent_cache"],
    ["cache_latents"],
    # judging and measuring
    ["bench", "captioned_images", "evaluate"],
    # learning
    ["distill"],
    ["decoder", "few_steps"],
    ["estimate", "sweep"],
    ["report"],
    ["rcdeploy_export"],
    ["cli"],
    ["__main__"],
]
"""Rooms (a file or folder of rcdeploy/, or another package), from the ground up; imports run to lower floors only."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_name(file: Path) -> str:
    package, folder = next((name, folder) for name, folder in PACKAGES.items() if file.is_relative_to(folder))
    return ".".join([package, *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")


FILES = {module_name(f): f for folder in PACKAGES.values() for f in sorted(folder.rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "rcdeploy" and len(parts) > 1 else parts[0]


def imports(module: str) -> set[str]:
    """Absolute names of everything the module imports, anywhere in it."""
    file = FILES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of ours that the module imports."""
    found = set()
    for name in imports(module):
        target = name if name in FILES else name.rpartition(".")[0]
        if target in FILES and target != module:
            found.add(target)
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in FILES} - {"rcdeploy"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_downwards(module: str) -> None:
    for target in own_imports(module):
        if room(target) != room(module) and target != "rcdeploy":
            assert FLOOR[room(target)] < FLOOR[room(module)], f"{module} imports {target}, which is not below it"


def test_no_circle_of_files() -> None:
    graph = {module: own_imports(module) for module in FILES}
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert graph == {}, "these files import each other in a circle, or import one that does"


def test_nothing_that_is_shipped_imports_the_campaign() -> None:
    for module in FILES:
        assert "campaign" not in {name.split(".")[0] for name in imports(module)}, module


def test_the_runtime_imports_nothing_heavy_and_none_of_ours() -> None:
    allowed = {"numpy", "tokenizers", "PIL", "onnxruntime", "rcdeploy_runtime", *sys.stdlib_module_names}
    server = {"fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"}
    extras = {
        "openvino_session.py": {"openvino"},
        "trt_session.py": {"cuda"},
        "trt_engines.py": {"cuda"},
        "executorch_session.py": {"executorch", "torch"},  # its Python interface takes torch's tensors
    }
    for module, file in FILES.items():
        if room(module) == "rcdeploy_runtime":
            extra = server if file.parent.name == "server" else extras.get(file.name, set())
            assert {name.split(".")[0] for name in imports(module)} <= allowed | extra, file


def test_no_pickle_is_ever_read() -> None:
    """ruff's banned-api has the same rule for imports; this one also sees torch.load and numpy.load."""
    for module, file in FILES.items():
        assert not {"pickle", "joblib", "shelve", "marshal"} & {n.split(".")[0] for n in imports(module)}, file
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


LIGHT = [
    "rcdeploy.recipe_file",
    "rcdeploy.student.spec",
    "rcdeploy.cli.main",
    "rcdeploy_runtime.manifest",
    "rcdeploy_runtime.__main__",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_torch(module: str) -> None:
    heavy = ("torch", "diffusers", "transformers", "fastapi")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_loads_no_onnxruntime() -> None:
    code = "import sys, rcdeploy.distill.loop; print([m for m in sys.modules if m.startswith('onnxruntime')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [m for m in FILES if m.startswith("rcdeploy.") and not m.endswith("__main__")]
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
