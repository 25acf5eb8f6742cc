"""web/: its fixtures are what the Python runtime computes, its dependencies are pinned, and its own tests pass."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules").is_dir(),
    reason="web/ is not installed: `make web` does it, with Node 20 or newer",
)


@pytest.fixture(scope="module")
def fixtures_script():
    spec = importlib.util.spec_from_file_location("make_fixtures", WEB / "tests/make_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_fixtures_are_what_the_python_runtime_computes(fixtures_script):
    fixtures = json.loads((WEB / "tests/fixtures.json").read_text(encoding="utf-8"))
    for name, computed in {
        "noise": fixtures_script.noise_cases(),
        "longNoise": fixtures_script.long_noise(),
        "timesteps": fixtures_script.timesteps_cases(),
        "samplers": fixtures_script.sampler_cases(),
        "pictures": fixtures_script.PICTURES,
    }.items():
        assert same(json.loads(json.dumps(computed)), fixtures[name]), f"{name}: run web/tests/make_fixtures.py"


def same(first, second):
    """Equality, but for the last bits of numbers, which are the C library's."""
    if isinstance(first, float):
        return first == pytest.approx(second, rel=1e-6, abs=1e-6)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_the_limits_and_the_schema_are_those_of_python():
    from rcdeploy_runtime import limits, manifest

    source = (WEB / "src/limits.ts").read_text(encoding="utf-8")
    constants = dict(re.findall(r"export const (\w+) = ([\d_ *]+);", source))
    shared = [name for name in constants if hasattr(limits, name)]
    assert len(shared) > 8
    for name in shared:
        assert eval(constants[name]) == getattr(limits, name), name
    assert f"SCHEMA_VERSION = {manifest.SCHEMA_VERSION};" in (WEB / "src/manifest.ts").read_text(encoding="utf-8")


def test_dependencies_are_pinned_and_the_lockfile_names_no_registry():
    package = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    versions = package["dependencies"] | package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values())
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    for name, entry in lock["packages"].items():
        assert "resolved" not in entry and (not name or entry["integrity"].startswith("sha512-")), name


@needs_node
def test_numbers_and_packages_in_node():
    run("npx", "tsc")
    run("node", "--test", "tests/numbers.test.js", "tests/package.test.js")


@needs_node
@pytest.mark.slow
def test_all_in_node_and_chromium():
    run("npm", "test")


def run(*command):
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
