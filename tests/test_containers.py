"""containers/: hadolint and systemd accept the files, what they copy and call exists. No image is built here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rcdeploy_runtime.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
CONTAINERS = ROOT / "containers"
DOCKERFILES = sorted(CONTAINERS.glob("Dockerfile*"))
UNIT = CONTAINERS / "rcdeploy-runtime.service"


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint")
    done = subprocess.run([hadolint, *map(str, DOCKERFILES)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_systemd_accepts_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / UNIT.name
    file.write_text(UNIT.read_text().replace("/opt/rcdeploy/bin/rcdeploy-runtime", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert str(file.name) not in done.stderr, done.stderr  # it may complain of other units of the machine
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(file)]  # of 100
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Overall exposure level" in done.stdout and done.returncode == 0, done.stdout[-500:]


def test_what_they_call_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = capsys.readouterr().out
    commands = [re.search(r"^ExecStart=\S+/rcdeploy-runtime (.*)", UNIT.read_text(), re.MULTILINE)[1].split()]  # type: ignore[index]
    for file in DOCKERFILES:
        (entrypoint,) = re.findall(r"^ENTRYPOINT (\[.*\])$", file.read_text(), re.MULTILINE)
        program, *arguments = json.loads(entrypoint)
        assert program == "rcdeploy-runtime"
        commands.append(arguments)
        (context,) = set(
            re.findall(rf"docker build -f containers/{file.name} .* (\S+)$", file.read_text(), re.MULTILINE)
        )
        assert (ROOT / context / "pyproject.toml").is_file()
    for arguments in commands:
        assert arguments[0] == "serve"
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert option in known, option
