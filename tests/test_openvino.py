"""OpenVINO's form of a package: by our runtime, and by openvino-genai, with no code of ours."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_graphs, save_teacher
from genai import genai_image

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.progress import no_progress
from rcdeploy_export.components import components
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.package_files import copy_configs
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json
from rcdeploy_runtime.manifest import Manifest
from rcdeploy_runtime.openvino_session import OpenVinoSession

PROMPT, SEED, STEPS = "a red shirt", 3, 10


@pytest.fixture(scope="module")
def ir(small_model: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        copy_graphs(package, patch)
        export_package(ExportSource.open(small_model), folder, ExportOptions(format="openvino"), no_progress)
    return folder


def generated(package: Path) -> np.ndarray:
    images, _ = TextToImage.load(package, threads=1).generate(PROMPT, seed=SEED, num_inference_steps=STEPS)
    return np.asarray(images[0], int)


def test_it_generates_what_the_onnx_package_generates(ir: Path, package: Path) -> None:
    assert Manifest.read(ir, "package").facts["format"] == "openvino"
    assert not list(ir.rglob("*.onnx*"))
    assert np.abs(generated(ir) - generated(package)).max() <= 1


def test_genai_opens_it_and_generates_the_same(ir: Path) -> None:
    image = genai_image(ir, PROMPT, SEED, num_inference_steps=STEPS, guidance_scale=7.5)
    assert np.abs(image - generated(ir)).max() <= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("teacher", ["fashion", "fashion_xl"])
def test_genai_draws_with_the_embedded_teachers(teacher: str, tmp_path: Path) -> None:
    """Of SDXL's shape too, with fewer tokens than its text encoders have positions: minutes, for the UNet's graph."""
    source = ExportSource.open(Path(__file__).parent.parent / "examples/teachers" / teacher)
    export_package(source, tmp_path / "p", ExportOptions(format="openvino"), no_progress)
    prompt, settings = "a photo of a red boot on a white background", {"num_inference_steps": 10, "guidance_scale": 4.0}
    images, _ = TextToImage.load(tmp_path / "p").generate(prompt, seed=SEED, **settings)
    image = np.asarray(images[0], int)
    assert image.std() > 40
    assert np.abs(image - genai_image(tmp_path / "p", prompt, SEED, **settings)).max() <= 2


def test_the_first_shapes_are_compiled_for_and_all_others_served(ir: Path) -> None:
    session = OpenVinoSession(ir / "unet", threads=1)
    rng = np.random.default_rng(0)
    assert not session._compiled, "nothing is compiled before shapes are known"
    channels = session._model.input("sample").partial_shape[1].get_length()
    text = session._model.input("encoder_hidden_states").partial_shape
    latents = rng.standard_normal((4, channels, 8, 8), np.float32)
    states = rng.standard_normal((4, text[1].get_length(), text[2].get_length()), np.float32)

    def predict(batch_size: int, side: int = 8) -> np.ndarray:
        sample = latents[:batch_size, :, :side, :side]
        return session.run({"sample": sample, "timestep": np.array(500), "encoder_hidden_states": states[:batch_size]})

    two = predict(2)
    assert [key is None for key in session._compiled] == [False]
    assert np.allclose(predict(4)[:2], two, atol=1e-5)
    assert predict(4, 4).shape == (4, channels, 4, 4)
    assert [key is None for key in session._compiled] == [False, True], "one for the first shapes, one for any"
    with ThreadPoolExecutor(2) as threads:
        assert all(np.allclose(a, two, atol=1e-5) for a in threads.map(predict, [2] * 4))


def test_a_signal_after_networks_have_gone_finds_its_handler(ir: Path) -> None:
    """In a process of its own, which ended by SIGSEGV when each session had a Core."""
    code = """
import gc, os, signal, sys
from pathlib import Path
from rcdeploy_runtime.openvino_session import OpenVinoSession
first, second, third = (OpenVinoSession(Path(sys.argv[1])) for _ in range(3))
del first; gc.collect()
del second; gc.collect()
fourth = OpenVinoSession(Path(sys.argv[1]))
del third, fourth; gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, str(ir / "text_encoder")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_what_openvino_cannot_load_is_refused_at_once(ir: Path, tmp_path: Path) -> None:
    with pytest.raises(RcdeployError, match="OpenVINO cannot load"):
        OpenVinoSession(ir / "unet", device="abacus")
    (tmp_path / "openvino_model.xml").write_text("<net")
    with pytest.raises(RcdeployError, match="OpenVINO cannot load"):
        OpenVinoSession(tmp_path)


@pytest.mark.parametrize(
    "precision", ["int8-weights", *(pytest.param(p, marks=pytest.mark.slow) for p in ("int8", "bf16"))]
)
def test_smaller_ones_are_smaller_and_measured(
    precision: str,
    copied_graphs: None,
    small_model: Path,
    ir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = ExportOptions(format="openvino", precision=precision, image_count=1)
    export_package(ExportSource.open(small_model), tmp_path / "p", options, no_progress)
    assert capfd.readouterr().out == "", "stdout belongs to --json"
    facts = Manifest.read(tmp_path / "p", "package").facts
    of_vae = "bf16" if precision == "bf16" else "fp32"
    assert facts["precision"]["unet"] == precision and facts["precision"]["vae_decoder"] == of_vae
    assert 1e-4 < max(e["relative_error"] for e in facts["unet_error_by_timestep"]) < 0.5
    assert "fp32 on this machine" in facts["verdict"]
    weights = "unet/openvino_model.bin"
    assert (tmp_path / "p" / weights).stat().st_size < 0.8 * (ir / weights).stat().st_size
    assert generated(tmp_path / "p").shape == (64, 64, 3)


def test_a_packages_config_says_how_many_tokens_its_graph_takes(tmp_path: Path) -> None:
    """genai passes that many; a text encoder may have positions for more than its tokenizer makes."""
    folder = save_teacher(tmp_path / "model", text={"max_position_embeddings": 40})
    model = LatentDiffusionModel(str(folder))
    (tmp_path / "package").mkdir()
    copy_configs(ExportSource.open(folder), model, components(model), None, tmp_path / "package")
    config = read_json(tmp_path / "package/text_encoder/config.json")
    assert config["max_position_embeddings"] == model.tokenizer.model_max_length == 16
