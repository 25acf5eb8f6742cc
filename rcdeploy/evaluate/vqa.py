"""BLIP-VQA of T2I-CompBench: does BLIP see in a picture every thing that its prompt names?

What its evaluator does (BLIPvqa_eval of github.com/Karine-Huang/T2I-CompBench; its colour, shape and texture scores):
every noun phrase of the prompt becomes a question ("a red shoe?"), and a picture's score is the product of BLIP's
probabilities of "yes". It rounds each of them to four digits; here they are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipForQuestionAnswering

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

from .reference import resized

NO_THINGS = ("top", "the side", "the left", "the right")
"""noun phrases that nobody can see"""
MOST, MOST_WORDS, MOST_TOKENS = 8, 50, 35
"""noun phrases of a prompt, words and tokens of a question"""
UNSPOKEN = str.maketrans("", "", '.!"()*#:;~')
"""what BLIP's questions are without"""
EDGE = 480
"""pixels: BLIP learned to answer at this size, whatever size a folder was converted at"""
AT_ONCE = 8
"""pictures; with all their questions some hundred MB on the way"""


class NounPhrases:
    """Finds noun phrases by a pipeline of spaCy's that is installed, or lies in a folder."""

    def __init__(self, pipeline: str) -> None:
        """Raises RcdeployError when spaCy or the pipeline is missing, or it does not parse sentences."""
        try:
            import spacy
        except ImportError as error:
            raise RcdeployError(
                f"vqa needs spaCy to find noun phrases: {error}", fix="Install it: pip install 'rcdeploy[compbench]'."
            ) from None
        try:
            # names and base forms do not change what is a noun phrase
            self.read = spacy.load(pipeline, exclude=["ner", "lemmatizer"])
            list(self.read("a red shoe").noun_chunks)
        except (OSError, ImportError, ValueError, NotImplementedError) as error:
            raise RcdeployError(
                f"{pipeline} is no pipeline of spaCy's that finds noun phrases: {error}",
                fix="T2I-CompBench's is en_core_web_sm: python -m spacy download en_core_web_sm (or pip install the "
                "wheel of its release); --noun-phrases names another one, or a folder.",
            ) from error
        meta = self.read.meta
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}, spaCy {spacy.__version__}"

    def __call__(self, prompt: str) -> list[str]:
        return things(self.read(prompt))


def things(doc: Any) -> list[str]:
    """The noun phrases of a parsed prompt (a Doc of spaCy's) that are asked for: the first MOST without NO_THINGS."""
    found = [phrase.text for phrase in doc.noun_chunks]
    return [phrase for phrase in found if phrase not in NO_THINGS][:MOST]


def question(phrase: str) -> str:
    """As BLIP is asked: in small letters, without some punctuation, not longer than MOST_WORDS."""
    return " ".join(f"{phrase}?".lower().translate(UNSPOKEN).split(" ")[:MOST_WORDS])


class VqaScore:
    """A BLIP model that answers questions, from a folder on this machine."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Raises RcdeployError when `folder` holds no such model in .safetensors."""
        try:
            config = read_json(folder / "config.json")
            if config.get("model_type") != "blip":
                raise ValueError(f"its model_type is {config.get('model_type')!r}, not 'blip'")
            self.model, said = BlipForQuestionAnswering.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            if lacking := sorted(said["missing_keys"]):  # BLIP models for captions are of the same type
                raise ValueError(f"{len(lacking)} of its weights are missing, {lacking[0]} for one")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.bos, self.enc, self.yes, self.no = _ids(self.tokenizer.get_vocab(), self.model.config.text_config)
        except (OSError, ValueError, KeyError, RcdeployError) as error:
            raise RcdeployError(
                f"{folder} holds no BLIP model that answers questions: {error}",
                fix="Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it.",
            ) from error
        given = folder / "preprocessor_config.json"
        pixels = read_json(given) if given.is_file() else {}
        # BLIP's own, where the folder does not say
        self.mean = torch.tensor(pixels.get("image_mean", [0.48145466, 0.4578275, 0.40821073])).view(3, 1, 1)
        self.std = torch.tensor(pixels.get("image_std", [0.26862954, 0.26130258, 0.27577711])).view(3, 1, 1)
        self.device = torch.device(device)
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, phrases: Sequence[Sequence[str]]) -> Tensor:
        """images uint8 [n, 3, h, w] and the noun phrases of their n prompts -> n products of probabilities.

        A picture whose prompt has no noun phrase scores 1, as in T2I-CompBench: nothing that was asked for is missing.
        """
        scores = torch.ones(len(images), device=self.device)
        for start in range(0, len(images), AT_ONCE):
            seen = self._see(images[start : start + AT_ONCE])  # once a picture, however much is asked of it
            asked = [(start + i, question(phrase)) for i in range(len(seen)) for phrase in phrases[start + i]]
            for rows, ids in self._by_length(asked):
                of = torch.tensor(rows, device=self.device)
                scores.scatter_reduce_(0, of, self._yes(seen[of - start], ids), "prod")
        return scores

    def _see(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] -> what BLIP sees, [n, tokens, width]."""
        square = torch.stack([resized(Image.fromarray(i.permute(1, 2, 0).numpy()), (EDGE, EDGE)) for i in images])
        pixels = ((square / 255 - self.mean) / self.std).to(self.device)
        # positions of another size are stretched; those of EDGE stay as they are
        return self.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state

    def _by_length(self, asked: Sequence[tuple[int, str]]) -> Iterator[tuple[list[int], Tensor]]:
        """(picture, question) pairs -> the pictures and the tokens [n, length] of n questions of one length, for each.

        Nothing is padded, because BLIP's decoder in transformers (5.23) does not heed a mask of what it reads.
        """
        found: dict[int, tuple[list[int], list[list[int]]]] = {}
        for picture, words in asked:
            ids = self.tokenizer(words, truncation=True, max_length=MOST_TOKENS).input_ids
            rows, questions = found.setdefault(len(ids), ([], []))
            rows.append(picture)
            # BLIP's questions begin with [ENC] where it learned to answer them; transformers leaves BERT's [CLS]
            questions.append([self.enc, *ids[1:]])
        for rows, questions in found.values():
            yield rows, torch.tensor(questions, device=self.device)

    def _yes(self, seen: Tensor, ids: Tensor) -> Tensor:
        """Of n pictures [n, tokens, width] one question each [n, length] -> n probabilities of "yes" against "no"."""
        heard = self.model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        begin = torch.full((len(ids), 1), self.bos, device=self.device)
        logits = self.model.text_decoder(input_ids=begin, encoder_hidden_states=heard).logits[:, 0]
        # p(yes) / (p(yes) + p(no)) of a softmax: all other words cancel
        return torch.sigmoid(logits[:, self.yes] - logits[:, self.no])


def _ids(vocabulary: dict[str, int], config: Any) -> tuple[int, int, int, int]:
    """Tokens that begin an answer and a question, and "yes" and "no".

    BLIP adds [DEC] and [ENC] to BERT's tokens, in this order. The tokenizers in transformers' folders are BERT's own:
    there only config.json knows of [DEC], as bos_token_id, and counts both in vocab_size.
    """
    bos = vocabulary.get("[DEC]", config.bos_token_id)
    enc = vocabulary.get("[ENC]", bos + 1)
    if enc >= config.vocab_size:
        raise ValueError(f"its {config.vocab_size} tokens have no room for [ENC], {enc}")
    if "yes" not in vocabulary or "no" not in vocabulary:
        raise ValueError("its tokenizer does not know yes and no")
    return bos, enc, vocabulary["yes"], vocabulary["no"]
