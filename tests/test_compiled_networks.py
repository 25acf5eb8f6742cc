"""What OpenVINO compiled is kept beside a tuning, used by the next process, and made again where it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tuning import tuning

from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.compiled_networks import MAX_KEPT, CompiledNetworks
from rcdeploy_runtime.kept_tuning import compiled_folder, keep
from rcdeploy_runtime.openvino_session import OpenVinoSession
from rcdeploy_runtime.package import Package
from rcdeploy_runtime.session_options import SessionOptions

pytest.importorskip("openvino")
PACKAGE = Path(__file__).resolve().parent.parent / "examples/students/fashion"


class Counted(CompiledNetworks):
    """compiled: how many networks were compiled."""

    compiled = 0

    def keep(self, key: str, compiled: Any, weight_bytes: int) -> None:
        self.compiled += 1
        super().keep(key, compiled, weight_bytes)


def decode(kept: CompiledNetworks, height: int = 8) -> np.ndarray:
    session = OpenVinoSession(PACKAGE / "vae_decoder", "cpu", 1, "f32", "model.onnx", kept)
    return session.run({"latent_sample": np.ones((1, 8, height, 8), np.float32)})


def test_a_compiled_network_is_used_again(tmp_path: Path) -> None:
    kept = Counted(tmp_path / "vae_decoder")
    first = decode(kept)
    assert np.array_equal(decode(kept), first) and kept.compiled == 1
    for height in (9, 10):
        assert decode(kept, height).shape == (1, 3, 8 * height, 64)
    assert kept.compiled == 3 and len(list(kept.folder.iterdir())) == MAX_KEPT


def test_one_that_is_not_whole_is_compiled_anew(tmp_path: Path) -> None:
    kept = Counted(tmp_path / "vae_decoder")
    first = decode(kept)
    (file,) = kept.folder.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    for number, damaged in enumerate((b"", whole[:-1], whole[:middle] + bytes(4096) + whole[middle + 4096 :]), 2):
        file.write_bytes(damaged)
        assert np.array_equal(decode(kept), first) and kept.compiled == number
    assert np.array_equal(decode(kept), first) and kept.compiled == number, "what was made anew is whole"


def test_nothing_is_kept_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcdeploy_runtime.compiled_networks.available_memory", lambda: 1_000)
    kept = Counted(tmp_path / "vae_decoder")
    decode(kept)
    assert kept.compiled == 1 and not kept.folder.exists()


def test_nothing_is_kept_where_nothing_can_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert np.isfinite(decode(CompiledNetworks(tmp_path / "cache"))).all()


def test_a_tuned_package_has_them_until_it_is_tuned_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = SessionOptions(device="cpu", threads=1, backend="openvino", precision="fp32")
    choice = replace(tuning(Package(PACKAGE)), options=options)
    keep(choice)
    images = [TextToImage.load(PACKAGE).generate("a bag", seed=1, num_inference_steps=1)[0][0] for _ in range(2)]
    assert np.array_equal(*map(np.asarray, images))
    folder = compiled_folder(choice)
    assert {file.parent.name for file in folder.rglob("*.blob")} == {"text_encoder", "unet", "vae_decoder"}
    keep(choice)
    assert not folder.exists()
