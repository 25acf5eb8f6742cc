"""BLIP-VQA of T2I-CompBench: does an image show everything that its prompt names, by BLIP's answers?

What its evaluator does (BLIPvqa_eval of github.com/Karine-Huang/T2I-CompBench; its colour, shape and texture scores):
every noun phrase of the prompt becomes a question ("a red shoe?"), and an image's score is the product of BLIP's
probabilities of "yes". It rounds each of them to four digits; here they are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BlipForQuestionAnswering

from rcdeploy_runtime.errors import RcdeployError
from rcdeploy_runtime.files import read_json

from .images import normalization, resized_batch

PLACES = ("top", "the side", "the left", "the right")
"""noun phrases that name no visible object"""
MAX_PHRASES = 8
"""per prompt"""
MAX_QUESTION_WORDS = 50
MAX_QUESTION_TOKENS = 35
REMOVED_PUNCTUATION = str.maketrans("", "", '.!"()*#:;~')
RESOLUTION = 480
"""pixels: BLIP was trained to answer at this size, whatever size a folder was converted at"""
BATCH_SIZE = 8
"""images; with all their questions some hundred MB of activations"""


class NounPhrases:
    """Finds noun phrases with a spaCy pipeline that is installed, or in a folder."""

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
            self.parse = spacy.load(pipeline, exclude=["ner", "lemmatizer"])
            list(self.parse("a red shoe").noun_chunks)
        except (OSError, ImportError, ValueError, NotImplementedError) as error:
            raise RcdeployError(
                f"{pipeline} is not a spaCy pipeline that finds noun phrases: {error}",
                fix="T2I-CompBench's is en_core_web_sm: python -m spacy download en_core_web_sm (or pip install the "
                "wheel of its release); --noun-phrases names another one, or a folder.",
            ) from error
        meta = self.parse.meta
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}, spaCy {spacy.__version__}"

    def __call__(self, prompt: str) -> list[str]:
        return visible_phrases(self.parse(prompt))


def visible_phrases(doc: Any) -> list[str]:
    """The first MAX_PHRASES noun phrases of a parsed prompt (spaCy's Doc) without PLACES."""
    phrases = [phrase.text for phrase in doc.noun_chunks]
    return [phrase for phrase in phrases if phrase not in PLACES][:MAX_PHRASES]


def question(phrase: str) -> str:
    """The question for a noun phrase: lower case, without some punctuation, at most MAX_QUESTION_WORDS."""
    return " ".join(f"{phrase}?".lower().translate(REMOVED_PUNCTUATION).split(" ")[:MAX_QUESTION_WORDS])


class VqaScore:
    """A BLIP model for question answering, from a folder on this machine."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Raises RcdeployError when `folder` holds no such model in .safetensors. Its own code is never run."""
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = read_json(folder / "config.json")
            if config.get("model_type") != "blip":
                raise ValueError(f"its model_type is {config.get('model_type')!r}, not 'blip'")
            self.model, loading_info = BlipForQuestionAnswering.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
            )
            if missing := sorted(loading_info["missing_keys"]):  # BLIP models for captions are of the same type
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} for one")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            self.bos, self.enc, self.yes, self.no = _ids(self.tokenizer.get_vocab(), self.model.config.text_config)
        except Exception as error:  # tokenizers' Rust side and the many classes raise whatever they like
            raise RcdeployError(
                f"{folder} holds no BLIP model for question answering: {error}",
                fix="Give a folder with config.json, model.safetensors and the tokenizer, as transformers writes it.",
            ) from error
        self.mean, self.std = normalization(folder)
        self.device = torch.device(device)
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, phrases: Sequence[Sequence[str]]) -> Tensor:
        """images uint8 [n, 3, h, w] and the noun phrases of their n prompts -> n products of probabilities.

        An image whose prompt has no noun phrase scores 1, as in T2I-CompBench: nothing that it names is missing.
        """
        scores = torch.ones(len(images), device=self.device)
        for start in range(0, len(images), BATCH_SIZE):
            embeds = self._image_embeds(images[start : start + BATCH_SIZE])  # once per image, whatever the questions
            questions = [(start + i, question(phrase)) for i in range(len(embeds)) for phrase in phrases[start + i]]
            for rows, ids in self._by_length(questions):
                index = torch.tensor(rows, device=self.device)
                scores.scatter_reduce_(0, index, self._probability_of_yes(embeds[index - start], ids), "prod")
        return scores

    def _image_embeds(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] -> hidden states of the vision model, [n, tokens, width]."""
        square = resized_batch(images, (RESOLUTION, RESOLUTION))
        pixels = ((square / 255 - self.mean) / self.std).to(self.device)
        # positions of another size are stretched; those of RESOLUTION stay as they are
        return self.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state

    def _by_length(self, questions: Sequence[tuple[int, str]]) -> Iterator[tuple[list[int], Tensor]]:
        """(image, question) pairs -> for each length, the images and the tokens [n, length] of n questions.

        Nothing is padded, because BLIP's decoder in transformers (5.23) ignores the attention mask of its context.
        """
        by_length: dict[int, tuple[list[int], list[list[int]]]] = {}
        for image, text in questions:
            ids = self.tokenizer(text, truncation=True, max_length=MAX_QUESTION_TOKENS).input_ids
            images, tokens = by_length.setdefault(len(ids), ([], []))
            images.append(image)
            # BLIP was trained with questions that begin with [ENC]; transformers leaves BERT's [CLS]
            tokens.append([self.enc, *ids[1:]])
        for images, tokens in by_length.values():
            yield images, torch.tensor(tokens, device=self.device)

    def _probability_of_yes(self, image_embeds: Tensor, ids: Tensor) -> Tensor:
        """n images [n, tokens, width] and a question each [n, length] -> n probabilities of "yes" against "no"."""
        encoded = self.model.text_encoder(input_ids=ids, encoder_hidden_states=image_embeds).last_hidden_state
        begin = torch.full((len(ids), 1), self.bos, device=self.device)
        logits = self.model.text_decoder(input_ids=begin, encoder_hidden_states=encoded).logits[:, 0]
        # p(yes) / (p(yes) + p(no)) of a softmax: all other tokens cancel
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
