"""The runtime sends nothing: no internet socket, and no file but its own cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FORBID_INTERNET = """
import ctypes, platform, struct
number, audit = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}[platform.machine()]
libc = ctypes.CDLL(None)
# a BPF program for seccomp: the kernel ends the process at socket(AF_INET) and socket(AF_INET6), of any thread
program = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 2, 0, 2), (0x15, 1, 0, 10),
           (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x80000000)]
raw = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
forbidden = not libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) and not libc.prctl(
    SECCOMP, FILTER, ctypes.byref(Filter(len(program), ctypes.addressof(raw))), 0, 0)
"""
CONNECT = "import socket; print(forbidden, flush=True); socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
GENERATE = """
import os, sys, time
before = dict(os.environ)
from rcdeploy_runtime import TextToImage
TextToImage.load(sys.argv[1], threads=1).generate("a bag", num_inference_steps=1)
assert dict(os.environ) == before, "the environment is left as it was"
time.sleep(0.5)
print("generated")
"""


def run(code: str, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(home), **variables}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_internet_socket_and_no_file_but_our_cache(package: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if sys.platform == "linux":
        control = run(FORBID_INTERNET + CONNECT, home)
        if "True" not in control.stdout:
            pytest.skip("this kernel takes no seccomp filter")
        assert control.returncode != 0, "the filter ends a process that opens an internet socket"
        done = run(FORBID_INTERNET + GENERATE, home, str(package))
    else:
        done = run(GENERATE, home, str(package))
    assert done.returncode == 0 and done.stdout == "generated\n", done.stderr
    assert {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()} <= {".cache/rcdeploy/digests.json"}


def test_the_users_own_choice_stands(tmp_path: Path) -> None:
    code = """
import os
from rcdeploy_runtime.onnx_runtime import import_onnxruntime
import_onnxruntime()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    assert run(code, tmp_path, ORT_DISABLE_TELEMETRY="0").stdout == "0\n"


def test_it_loads_without_a_home(package: Path, tmp_path: Path) -> None:
    """A container whose user has no HOME and no entry in passwd."""
    code = """
import os, pathlib, sys
os.environ.pop("HOME", None)
def no_home(*_):
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = no_home
from rcdeploy_runtime import TextToImage
TextToImage.load(sys.argv[1], threads=1).generate("a bag", num_inference_steps=1)
"""
    done = run(code, tmp_path, str(package))
    assert done.returncode == 0, done.stderr
