"""Loading a diffusers folder: what does not fit is refused by name, nothing is guessed, fetched or executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_files import MAX_LISTED_TENSORS
from rcdeploy.model_trial import try_network
from rcdeploy_runtime.errors import RcdeployError

COMPONENTS = ("unet", "text_encoder", "vae")
Weights = dict[str, torch.Tensor]


@pytest.fixture
def model(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "model"))


def change_weights(model: Path, component: str, change: Callable[[Weights], None]) -> None:
    (file,) = (model / component).glob("*.safetensors")
    weights = load_file(file)
    change(weights)
    save_file({name: value.contiguous() for name, value in weights.items()}, file, {"format": "pt"})


def test_every_component_is_frozen_and_in_evaluation_mode(tiny_teacher: Path) -> None:
    loaded = LatentDiffusionModel(str(tiny_teacher), dtype=torch.bfloat16)
    for name in COMPONENTS:
        module = getattr(loaded, name)
        assert module is getattr(loaded, name), "loaded once"
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_missing_tensor_is_refused_by_name(model: Path, component: str) -> None:
    """Libraries would fill it with random numbers."""
    removed: list[str] = []

    def remove(weights: Weights) -> None:
        removed.append(next(name for name in sorted(weights) if name.endswith("weight")))
        del weights[removed[0]]

    change_weights(model, component, remove)
    with pytest.raises(RcdeployError, match=f"the weights of the {component} in .* do not fit its config") as caught:
        LatentDiffusionModel(str(model)).load(component)
    assert any("lacks the tensor" in error and removed[0].split(".", 1)[1] in error for error in caught.value.errors)


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_unexpected_tensor_is_refused_by_name(model: Path, component: str) -> None:
    change_weights(model, component, lambda weights: weights.update({"backdoor.weight": torch.zeros(2)}))
    with pytest.raises(RcdeployError) as caught:
        LatentDiffusionModel(str(model)).load(component)
    assert caught.value.errors == (f"{component} has no place for backdoor.weight",)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_misshapen_tensor_is_refused_by_name(model: Path, component: str) -> None:
    changed: list[str] = []

    def misshape(weights: Weights) -> None:
        changed.append(next(name for name in sorted(weights) if weights[name].dim() == 2))
        weights[changed[0]] = torch.cat([weights[changed[0]]] * 2)

    change_weights(model, component, misshape)
    with pytest.raises(RcdeployError) as caught:
        LatentDiffusionModel(str(model)).load(component)
    assert changed[0].split(".", 1)[1] in str(caught.value)


def test_many_missing_tensors_are_not_all_listed(model: Path) -> None:
    change_weights(model, "unet", lambda weights: [weights.pop(name) for name in sorted(weights)[:20]] and None)
    with pytest.raises(RcdeployError) as caught:
        LatentDiffusionModel(str(model)).load("unet")
    assert len(caught.value.errors) == MAX_LISTED_TENSORS


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(model: Path, component: str, value: float) -> None:
    changed: list[str] = []

    def spoil(weights: Weights) -> None:
        changed.append(sorted(weights)[0])
        weights[changed[0]].view(-1)[0] = value

    change_weights(model, component, spoil)
    with pytest.raises(RcdeployError, match=f"the {component} has NaN or infinite weights: ") as caught:
        LatentDiffusionModel(str(model)).load(component)
    assert changed[0].split(".", 1)[1] in caught.value.message


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('unpickled', 'w').close()",)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pickled_file_is_never_loaded(model: Path, component: str, tmp_path: Path) -> None:
    (file,) = (model / component).glob("*.safetensors")
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (model / component / name).write_bytes(pickle.dumps(Trap()))
    LatentDiffusionModel(str(model)).load(component)  # ignored beside safetensors
    file.unlink()
    with pytest.raises(RcdeployError, match=f"the {component} cannot be loaded from") as caught:
        LatentDiffusionModel(str(model)).load(component)
    assert ".safetensors" in str(caught.value.fix)
    assert not (tmp_path / "unpickled").exists()


def test_truncated_weights_are_refused(model: Path) -> None:
    (file,) = (model / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RcdeployError, match="the unet cannot be loaded from"):
        LatentDiffusionModel(str(model)).load("unet")


UNTRUSTED_TOKENIZER = """
import sys
from rcdeploy.diffusion_model import LatentDiffusionModel
from rcdeploy.model_trial import try_network
from rcdeploy_runtime.errors import RcdeployError
try:
    LatentDiffusionModel(sys.argv[1]).tokenizer
except RcdeployError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("stdin", ["y\n", ""])
def test_the_code_of_a_tokenizer_is_neither_run_nor_offered_on_stdin(model: Path, tmp_path: Path, stdin: str) -> None:
    config = json.loads((model / "tokenizer/tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (model / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    for name in ("evil.py", "tokenizer/evil.py"):
        (model / name).write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\nclass Evil: pass\n")
    done = subprocess.run(
        [sys.executable, "-c", UNTRUSTED_TOKENIZER, str(model)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: the tokenizer cannot be loaded from"), done.stdout
    assert not (tmp_path / "executed").exists()


ODD_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("unet/config.json", {"block_out_channels": ["8", 16]}, "the unet cannot be loaded"),
    ("unet/config.json", {"up_block_types": [{"a": "UpBlock2D"}] * 2}, "the unet cannot be loaded"),
    ("unet/config.json", {"act_fn": "relu6"}, "the unet cannot be loaded"),
    ("vae/config.json", {"block_out_channels": [4]}, "the vae cannot be loaded"),
    ("vae/config.json", {"scaling_factor": "big"}, "scaling_factor is 'big'"),
    ("vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0"),
    ("unet/config.json", {"sample_size": [8]}, "sample_size"),
    ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "neither epsilon nor v_prediction"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "is no noise schedule"),
    ("scheduler/scheduler_config.json", {"trained_betas": {"a": None}}, "is no noise schedule"),
    ("tokenizer/tokenizer_config.json", {"pad_token": None}, "padding token None"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": 2**40}, "model_max_length"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": 900}, "does not belong to the text encoder"),
]


@pytest.mark.parametrize(("file", "changes", "message"), ODD_CONFIGS)
def test_odd_configs_are_refused_in_words(model: Path, file: str, changes: dict[str, Any], message: str) -> None:
    config = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**config, **changes}))
    with pytest.raises(RcdeployError, match=message):
        teacher = LatentDiffusionModel(str(model))
        teacher.load(*COMPONENTS)
        teacher.encode_prompts(["a bag"])
        teacher.decode(torch.zeros(1, *teacher.latent_shape()))


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "vae/notes.txt", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "zero"])
def test_what_is_no_file_is_not_read(model: Path, name: str, kind: str) -> None:
    (model / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(model / name)
    elif kind == "folder":
        (model / name).mkdir()
    else:
        (model / name).symlink_to("/dev/zero")
    with pytest.raises(RcdeployError, match="is not a regular file"):
        LatentDiffusionModel(str(model))


def test_a_network_is_tried_before_it_is_used() -> None:
    class Broken(torch.nn.Linear):
        config = SimpleNamespace(hidden_size=4)

        def forward(self, ids: torch.Tensor) -> Any:
            return SimpleNamespace(last_hidden_state=self.output(len(ids[0])))

    network = Broken(1, 1)
    network.output = lambda tokens: torch.zeros(1, tokens, 4)
    try_network("text_encoder", network)
    network.output = lambda tokens: torch.zeros(1, tokens, 5)
    with pytest.raises(RcdeployError, match=r"the text_encoder cannot compute: .* \[1, 2, 5\] instead of \[1, 2, 4\]"):
        try_network("text_encoder", network)
    network.output = lambda tokens: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RcdeployError, match="the text_encoder cannot compute: RuntimeError"):
        try_network("text_encoder", network)


def test_a_name_on_the_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(RcdeployError, match="cannot be fetched from the hub") as caught:
        LatentDiffusionModel("somebody/some-model")
    assert "teacher.path" in str(caught.value.fix)


def test_a_folder_that_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(RcdeployError):
        LatentDiffusionModel(str(tmp_path))


def test_the_revision_changes_with_any_component(model: Path, tiny_teacher: Path) -> None:
    before = LatentDiffusionModel(str(tiny_teacher)).revision
    assert LatentDiffusionModel(str(model)).revision == before
    (model / "README.md").write_text("not a component")
    assert LatentDiffusionModel(str(model)).revision == before
    for component in COMPONENTS:
        change_weights(model, component, lambda weights: weights[sorted(weights)[0]].add_(1))
        revision = LatentDiffusionModel(str(model)).revision
        assert revision != before
        before = revision


def test_decoding_divides_by_the_scaling_factor(tiny_teacher: Path) -> None:
    loaded = LatentDiffusionModel(str(tiny_teacher))
    vae = AutoencoderKL.from_pretrained(tiny_teacher / "vae").eval()
    latents = torch.randn(3, *loaded.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(loaded.decode(latents, batch_size=2), expected, atol=1e-5)
