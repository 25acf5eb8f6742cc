"""Language models in folders on this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from language_model_server import HELLO
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.prompts.language_model import Request
from rcdeploy.prompts.local_models import LocalModel
from rcdeploy_runtime.errors import RcdeployError

run = CliRunner().invoke


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with random weights: whatever it says is nonsense."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm") / "nonsense"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<end>"])}, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=257, n_positions=2048, n_embd=16, n_layer=1, n_head=2, eos_token_id=256)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_local_model_answers_the_same_each_time(tiny_llm: Path, tmp_path: Path) -> None:
    model = LocalModel(tiny_llm)
    warm = Request("Be kind.", "Say something.", 12, temperature=1.0)
    assert model.answer(warm) == model.answer(warm) != model.answer(Request("Be kind.", "Other.", 12, temperature=1.0))
    assert model.answer(HELLO) == LocalModel(tiny_llm).answer(HELLO)
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    assert isinstance(model.answer(HELLO), str)
    with pytest.raises(RcdeployError, match="holds no language model"):
        LocalModel(tmp_path)
    (tmp_path / "nouns.txt").write_text("cup\n")
    line = ["prompts", "generate", "--out", "made", "--nouns", "nouns.txt", "--per-noun", "2", "--local-model"]
    failed = run(app, [*line, str(tiny_llm), "--quiet"])
    assert isinstance(failed.exception, RcdeployError) and "no prompt was made" in str(failed.exception)
    assert not (tmp_path / "made/made.json").exists()


@pytest.mark.parametrize("part", ["tokenizer", "model"])
def test_code_in_a_model_folder_is_never_run(
    tiny_llm: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm, folder)
    file = folder / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
    config = json.loads(file.read_text())
    if part == "tokenizer":
        config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    else:
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    file.write_text(json.dumps(config))
    (folder / "evil.py").write_text("from pathlib import Path\nPath('owned').touch()\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks on stdin"))
    with contextlib.suppress(RcdeployError):  # a tokenizer.json beside a class of its own is enough
        LocalModel(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["tokenizer", "weights", "lacks a tensor", "truncated"])
def test_damaged_models(tiny_llm: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm, folder)
    weights = folder / "model.safetensors"
    if damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif damage == "weights":
        weights.write_bytes(b"no safetensors")
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    else:
        tensors = load_file(weights)
        del tensors["transformer.h.0.attn.c_attn.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RcdeployError, match="holds no language model: ") as error:
        LocalModel(folder)
    if damage == "lacks a tensor":
        assert "lacks transformer.h.0.attn.c_attn.weight" in str(error.value)
