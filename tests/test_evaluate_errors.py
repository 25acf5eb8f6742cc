"""Bad input of rcdeploy evaluate: one clear error each, before anything is sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation import evaluate
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.evaluate.image_set import open_image_set
from rcdeploy_runtime.errors import RcdeployError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-of-the-kind"], "is no file or folder here"),
        (["c-micro"], "it has no weights"),
        (["TEACHER"], "there are no prompts to evaluate"),
        (["TEACHER", "--prompts", "gone.txt"], "gone.txt does not exist"),
        (["TEACHER", "--prompts", "table.csv"], "has none of the columns"),
        (["TEACHER", "--prompts", "table.csv", "--column", "b"], "no column 'b'"),
        (["TEACHER", "--prompts", "captions.txt", "--count", "21"], "21 prompts are requested, .* has 20"),
        (["TEACHER", "--prompts", "captions.txt", "--include", "cat"], "no caption passes"),
        (["TEACHER", "--prompts", "captions.txt", "--include", "("], "is no regular expression"),
        (["TEACHER", "--prompts", "captions.txt", "--split", "cats.txt"], "no prompt has one of its words"),
        (["TEACHER", "--prompts", "captions.txt", "--split", "gone.txt"], "gone.txt cannot be read"),
        (["TEACHER", "--prompts", "captions.txt", "--metrics", "fid"], "fid needs the weights of Inception-v3"),
        (["TEACHER", "--prompts", "captions.txt", "--metrics", "clip"], r"laion/CLIP-ViT-g-14.* cannot be fetched"),
        (["TEACHER", "--prompts", "captions.txt", "--clip", "gone/clip"], "gone/clip is not a local folder and cannot"),
        (["TEACHER", "--prompts", "captions.txt", "--metrics", "lpips"], "there is no metric 'lpips'"),
        (["TEACHER", "--prompts", "captions.txt", "--clip", "empty", "--metrics", "clip"], "holds no CLIP model"),
        (["TEACHER", "--prompts", "captions.txt", "--judge", "empty"], "holds no judge"),
        (["TEACHER", "--prompts", "captions.txt", "--inception", "gone.safetensors"], "no weights of Inception-v3 at"),
        (["TEACHER", "--prompts", "captions.txt", "--reference", "gone"], "no such file or folder"),
        (["TEACHER", "--prompts", "captions.txt", "--resize", "128"], "would enlarge images of 64x64"),
        (["TEACHER", "--prompts", "captions.txt", "--device", "abacus"], "torch has no device 'abacus'"),
        (["TEACHER", "--prompts", "captions.txt", "--checkpoint", "best"], "is not a run folder"),
        (["TEACHER", "--prompts", "captions.txt", "--out", "other"], "holds other images"),
    ],
)
def test_bad_input_is_one_error(
    judged: Path, captions: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "table.csv").write_text("a,c\n1,2\n")
    (tmp_path / "cats.txt").write_text("cat\n")
    (tmp_path / "empty").mkdir()
    if "other" in arguments:
        open_image_set(tmp_path / "other", ["a cat"], {"model": "x"}, size=(8, 8), shard_size=1, batch_size=1)
    with pytest.raises(RcdeployError, match=message):
        result = CliRunner().invoke(app, ["evaluate", *(str(judged) if a == "TEACHER" else a for a in arguments)])
        assert result.exception is not None, result.output
        raise result.exception
    assert not list(tmp_path.rglob("pictures-*")), "nothing was sampled"


def test_without_weights_the_error_says_which_to_name(tiny_teacher: Path, captions: Path) -> None:
    with pytest.raises(RcdeployError, match="no metric can be computed") as caught:
        evaluate(tiny_teacher, "--prompts", captions)
    for word in ("--inception", "--clip", "--judge"):
        assert word in caught.value.problem
    assert "pytorch-fid" in str(caught.value.fix)


def test_no_run_is_there(captions: Path) -> None:
    with pytest.raises(RcdeployError, match="no finished run"):
        evaluate("--prompts", captions)
