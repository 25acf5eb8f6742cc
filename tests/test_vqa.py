"""BLIP-VQA: transformers' own answers one question at a time, noun phrases, and errors about missing ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from conftest import COLOURS, PAIRED, THINGS
from PIL import Image
from safetensors.torch import load_file
from spacy.language import Language
from spacy.tokens import Doc
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from typer.testing import CliRunner

from rcdeploy.cli.main import app
from rcdeploy.evaluate.prompt_choice import choose_prompts
from rcdeploy.evaluate.spec import EvaluationSpec
from rcdeploy.evaluate.vqa import BATCH_SIZE, NounPhrases, VqaScore, question, visible_phrases
from rcdeploy.sweep.spec import read_score
from rcdeploy_runtime.errors import RcdeployError

FASHION = Path(__file__).parent.parent / "examples/teachers/fashion"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ",", "yes", "no", "a", "two", "on", *COLOURS, *THINGS]
VOCABULARY = {word: i for i, word in enumerate(WORDS)}
DEC, ENC = len(WORDS), len(WORDS) + 1
PHRASES = [["a red shirt", "a blue bag"], [], ["two coat"], ["a black shoe"] * 3, ["a green dress", "two"]]


def small(**text: Any) -> BlipConfig:
    """A BLIP of few weights, large enough ones for images and questions to matter; positions of 3 x 3 patches."""
    each = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.4}
    tokens = {"vocab_size": len(WORDS) + 2, "bos_token_id": DEC, "sep_token_id": 3, "pad_token_id": 0}
    return BlipConfig(
        text_config={**each, "hidden_size": 16, "max_position_embeddings": 40, **tokens, **text},
        vision_config={**each, "hidden_size": 16, "image_size": 48, "patch_size": 16},
        projection_dim=8,
    )


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    # the tokenizer in transformers' folders knows neither [DEC] nor [ENC]
    BertTokenizer(vocab=VOCABULARY).save_pretrained(folder)
    return folder


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path / "blip", BlipForQuestionAnswering(small()))


def random_images(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 32, 48), np.uint8))


def answer(model: BlipForQuestionAnswering, image: torch.Tensor, phrase: str) -> float:
    """P(yes) / (P(yes) + P(no)) of the first token that transformers generates."""
    ids = torch.tensor([[ENC, *(VOCABULARY[word] for word in phrase.split()), VOCABULARY["?"], VOCABULARY["[SEP]"]]])
    prepare = BlipImageProcessorPil(size={"height": 480, "width": 480})
    pixels = prepare(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    output = model.generate(
        ids, pixels, interpolate_pos_encoding=True, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
    )
    p = output.logits[0][0].softmax(0)
    return float(p[VOCABULARY["yes"]] / (p[VOCABULARY["yes"]] + p[VOCABULARY["no"]]))


def test_it_is_the_product_of_the_models_own_answers(blip: Path) -> None:
    model, images = BlipForQuestionAnswering.from_pretrained(blip).eval(), random_images(5)
    answers = [[answer(model, image, p) for p in of] for image, of in zip(images, PHRASES, strict=True)]
    scores = VqaScore(blip)(images, PHRASES)
    torch.testing.assert_close(scores, torch.tensor([np.prod(of) for of in answers], dtype=torch.float32))
    assert scores[1] == 1, "without a question"
    alone = [a for of in answers for a in of]
    assert min(alone) < 0.4 and max(alone) > 0.6, "not one number for all"
    other = VqaScore(blip)(images.flip(0), PHRASES)
    assert (other - scores)[[0, 3, 4]].abs().min() > 1e-3, "the images matter"


def test_every_image_is_encoded_once(blip: Path) -> None:
    score, batches = VqaScore(blip), []
    score.model.vision_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: batches.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    n = BATCH_SIZE + 3
    scores = score(random_images(n), [["a red shirt", "a blue bag"]] * n)
    assert batches == [(BATCH_SIZE, 3, 480, 480), (3, 3, 480, 480)] and scores.shape == (n,)


def test_scores_do_not_depend_on_the_batch(blip: Path) -> None:
    score, images = VqaScore(blip), random_images(5)
    together = score(images, PHRASES)
    alone = [score(images[i : i + 1], PHRASES[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_tokenizer_that_knows_blips_own_tokens(blip: Path) -> None:
    before = VqaScore(blip)(random_images(5), PHRASES)
    words = BertTokenizer(vocab=VOCABULARY)
    words.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    words.save_pretrained(blip)
    assert words.convert_tokens_to_ids("[ENC]") == ENC
    assert torch.equal(VqaScore(blip)(random_images(5), PHRASES), before)


def test_the_folders_own_mean(blip: Path) -> None:
    before = VqaScore(blip)(random_images(5), PHRASES)
    (blip / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.5, 0.9]}))
    assert (VqaScore(blip)(random_images(5), PHRASES) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("A red Shirt", "a red shirt?"),
        ('the "old" (grey) shoe.', "the old grey shoe?"),
        ("Mr. O'Neil's half-blue, round bag", "mr o'neil's half-blue, round bag?"),
        ("red " * 60 + "bag", " ".join(["red"] * 50)),
    ],
)
def test_questions(phrase: str, expected: str) -> None:
    assert question(phrase) == expected


# noun phrases


def parsed(words: str, pos: str, deps: str, heads: list[int]) -> Doc:
    return Doc(spacy.blank("en").vocab, words=words.split(), pos=pos.split(), deps=deps.split(), heads=heads)


def test_places_are_no_questions() -> None:
    doc = parsed(
        "a bag on the left of the red shoe",
        "DET NOUN ADP DET NOUN ADP DET ADJ NOUN",
        "det ROOT prep det pobj prep det amod pobj",
        [1, 1, 1, 4, 2, 4, 8, 8, 5],
    )
    assert [c.text for c in doc.noun_chunks] == ["a bag", "the left", "the red shoe"]
    assert visible_phrases(doc) == ["a bag", "the red shoe"]


def test_eight_at_most_without_the_places() -> None:
    nouns = ["top", *(f"bag{i}" for i in range(10))]
    doc = parsed(" ".join(nouns), "NOUN " * 11, "ROOT " * 11, list(range(11)))
    assert visible_phrases(doc) == [f"bag{i}" for i in range(8)]


@Language.component("articles_and_colours")
def articles_and_colours(doc: Doc) -> Doc:
    """A parser for the captions of these tests: the last word of a phrase is its noun."""
    words = [token.text for token in doc]
    before = ["a", "two", *COLOURS]
    heads = [next((j for j in range(i, len(words)) if words[j] not in before), i) for i in range(len(words))]
    nouns = [word in THINGS for word in words]
    return Doc(
        doc.vocab,
        words=words,
        pos=["NOUN" if noun else "DET" if word in before else "VERB" for word, noun in zip(words, nouns, strict=True)],
        deps=["ROOT" if heads[i] == i else "det" for i in range(len(words))],
        heads=heads,
    )


def pipeline(folder: Path, version: str = "1.0") -> Path:
    made = spacy.blank("en", meta={"version": version})
    made.add_pipe("articles_and_colours")
    made.to_disk(folder)
    return folder


def test_a_pipeline_in_a_folder(tmp_path: Path) -> None:
    find = NounPhrases(str(pipeline(tmp_path / "pipeline")))
    assert find("a red shirt worn near two blue bag") == ["a red shirt", "two blue bag"]
    assert find("worn") == []
    assert find.name.startswith("en_") and " 1.0, spaCy " in find.name


def test_what_cannot_find_noun_phrases_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    for name in ("no_such_pipeline", str(tmp_path / "blank")):
        with pytest.raises(RcdeployError, match="not a spaCy pipeline that finds noun phrases") as caught:
            NounPhrases(name)
        assert "python -m spacy download en_core_web_sm" in str(caught.value.fix)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(RcdeployError, match="needs spaCy") as caught:
        NounPhrases("en_core_web_sm")
    assert "rcdeploy[compbench]" in str(caught.value.fix)


# the model's folder


def test_folders_that_hold_no_such_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    captions = saved(tmp_path / "captions", BlipForConditionalGeneration(small()))
    cramped = saved(tmp_path / "cramped", BlipForQuestionAnswering(small(vocab_size=len(WORDS) + 1)))
    mute = saved(tmp_path / "mute", BlipForQuestionAnswering(small()))
    spoken = {word if word != "yes" else "maybe": i for word, i in VOCABULARY.items()}
    BertTokenizer(vocab=spoken).save_pretrained(mute)
    for folder, message in {
        tmp_path / "empty": r"config\.json",
        captions: "weights are missing",
        cramped: r"no room for \[ENC\]",
        mute: "does not know yes and no",
    }.items():
        with pytest.raises(RcdeployError, match=f"holds no BLIP model for question answering: .*{message}"):
            VqaScore(folder)


# rcdeploy evaluate


def run(*arguments: Any) -> dict[str, Any]:
    words = ["evaluate", *map(str, arguments), "--steps", "2", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    scores: dict[str, Any] = json.loads(result.stdout)
    return scores


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "captions.txt").write_text("".join(f"{p}\n" for p in PAIRED[:3]))
    return tmp_path / "captions.txt"


def test_several_images_of_each_prompt(captions: Path, blip: Path, tmp_path: Path) -> None:
    common = [FASHION, "--prompts", captions, "--metrics", "vqa", "--vqa", blip, "--repeat", 2, "--out", "set"]
    record = run(*common, "--noun-phrases", pipeline(tmp_path / "pipeline"))
    assert record["counts"] == {"all": 6} and record["prompts"]["repeat"] == 2
    assert record["weights"]["vqa"]["noun_phrases"].startswith("en_")
    assert (tmp_path / "set/prompts.txt").read_text().splitlines() == [p for p in PAIRED[:3] for _ in range(2)]
    images = load_file("set/pictures-00000.safetensors")["pictures"]
    assert not torch.equal(images[0], images[1]), "each from noise of its own"
    expected = VqaScore(blip)(images, [[p] for p in PAIRED[:3] for _ in range(2)])
    assert record["scores"] == {"all": {"vqa": pytest.approx(expected.double().mean().item(), abs=1e-5)}}

    again = run(*common, "--noun-phrases", pipeline(tmp_path / "other", "2.0"))
    assert again["seconds"]["pictures_drawn"] == 0
    assert len(list((tmp_path / "set").glob("vqa-*.safetensors"))) == 2, "computed anew: its questions may differ"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "vqa needs a BLIP model for question answering: --vqa"),
        (["--vqa", "no/blip", "--noun-phrases", "pipeline"], "no/blip is not a local folder and cannot be fetched"),
        (["--vqa", "gone"], "--vqa gone: no such file or folder"),
        (["--vqa", "blip", "--noun-phrases", "no_such_pipeline"], "no_such_pipeline is not a spaCy pipeline"),
        (["--vqa", "empty", "--noun-phrases", "pipeline"], "empty holds no BLIP model"),
    ],
)
def test_missing_files_are_an_error_before_anything_is_sampled(
    tiny_teacher: Path, captions: Path, blip: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    pipeline(tmp_path / "pipeline")
    with pytest.raises(RcdeployError, match=message):
        run(tiny_teacher, "--prompts", captions, "--metrics", "vqa", *arguments)
    assert blip.is_dir() and not list(tmp_path.rglob("pictures-*"))


def test_prompts_are_chosen_before_they_are_repeated(captions: Path) -> None:
    chosen = choose_prompts(EvaluationSpec(prompt_files=(captions,), count=2, repeat=3))
    assert len(chosen) == 6 and len(set(chosen)) == 2
    assert chosen == [chosen[0]] * 3 + [chosen[3]] * 3


def test_a_score_file_names_the_model(captions: Path, blip: Path, tmp_path: Path) -> None:
    (tmp_path / "score.toml").write_text('captions = ["captions.txt"]\ncount = 3\nmetrics = ["vqa"]\nvqa = "blip"\n')
    score = read_score(tmp_path / "score.toml")
    assert score.metrics == ["vqa"] and score.vqa == str(blip)
