"""Zero-shot detectors of transformers, opened for real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tokenizer
from detectors import WORDS, save_dino, save_owl
from evaluation import save_clip
from transformers import BertTokenizer, Owlv2ForObjectDetection, Owlv2Processor
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from rcdeploy.evaluate.detector import ZeroShotDetector, _by_phrase
from rcdeploy_runtime.errors import RcdeployError


@pytest.fixture
def owl(tmp_path: Path) -> Path:
    return save_owl(tmp_path / "owl")


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    return save_dino(tmp_path / "dino")


def test_owlv2_finds_what_transformers_finds(owl: Path) -> None:
    detector = ZeroShotDetector(owl)
    image = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector.threshold = 0
    boxes = detector(image, ["red bag", "coat"])
    processor = Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer())
    texts = [["a photo of a red bag", "a photo of a coat"]]
    inputs = processor(images=image, text=texts, return_tensors="pt")
    with torch.no_grad():
        output = Owlv2ForObjectDetection.from_pretrained(owl).eval()(**inputs)
    [expected] = processor.post_process_grounded_object_detection(output, 0.0, [(479, 479)], [["red bag", "coat"]])
    assert [b.name for b in boxes] == expected["text_labels"] and len(boxes) == 16
    torch.testing.assert_close(torch.tensor([b.corners for b in boxes]), expected["boxes"])
    torch.testing.assert_close(torch.tensor([b.score for b in boxes]), expected["scores"])


def test_grounding_dino_names_a_box_by_its_likeliest_phrase(dino: Path) -> None:
    detector = ZeroShotDetector(dino)
    detector.threshold = 0
    boxes = detector(torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8), ["red bag", "coat"])
    assert len(boxes) == 20 and {b.name for b in boxes} <= {"red bag", "coat"}
    words = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    ids = words("red bag. coat.").input_ids
    logits = torch.arange(2.0 * len(ids)).view(2, -1)
    assert torch.equal(_by_phrase(logits, ids, words), logits[:, [2, 4]]), "[CLS] red bag . coat . [SEP]"


def test_what_is_no_detector_is_refused(tmp_path: Path, owl: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    with pytest.raises(RcdeployError, match="holds no zero-shot detector: .*'clip', none of owlvit"):
        ZeroShotDetector(clip)
    (owl / "model.safetensors").unlink()
    with pytest.raises(RcdeployError, match="holds no zero-shot detector"):
        ZeroShotDetector(owl)
