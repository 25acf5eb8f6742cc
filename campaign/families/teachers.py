"""Teachers from strangers: diffusers folders with changed configs, tensors, tokenizers, links and pickles."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from rcdeploy_runtime.errors import RcdeployError

from ..attempts import Failed, Family, Place
from ..mutate import broken_json, harmed, json_text, mutated_json, replace_by_special

SECRET = "known to its owner only"
COMPONENTS = ("unet", "text_encoder", "vae")
ANY, REFUSED, SAME = "any end is right", "it must be refused", "the result must be the same"


def run(place: Place, random: Random) -> None:
    reference = place.once("latents and image", lambda: _use(place.materials / "teacher"))
    secret = place.folder.parent / "secret.txt"
    secret.write_text(SECRET)
    folder = Path(shutil.copytree(place.materials / "teacher", "teacher"))
    mutation = random.choices([m for m, _ in MUTATIONS], [weight for _, weight in MUTATIONS])[0]
    words, right_end = mutation(folder, random, secret)
    place.describe(words)
    try:
        result = _use(folder)
        _copy(folder)
    finally:
        _nothing_leaked()
    if right_end == REFUSED:
        raise Failed("it was accepted")
    if right_end == SAME and result != reference:
        raise Failed("it was accepted, and latents or image are others")


def _use(folder: Path) -> tuple[bytes, bytes]:
    """What a distillation does with a teacher: it samples a latent, decodes it, and reads its configs."""
    import torch

    from rcdeploy.diffusion_model import LatentDiffusionModel
    from rcdeploy.sampling import sample_latents, starting_noise

    teacher = LatentDiffusionModel(str(folder))
    teacher.load("unet", "text_encoder", "vae")
    latents = sample_latents(
        teacher.unet,
        teacher.schedule,
        starting_noise(0, range(1), teacher.latent_shape()),
        teacher.encode_prompts(["a red bag"]),
        teacher.encode_prompts([""]),
        num_inference_steps=2,
        guidance_scale=2.0,
    )
    if not torch.isfinite(latents).all():
        raise RcdeployError("the latents are not finite")  # as filling a cache refuses them
    images = teacher.decode(latents)
    assert teacher.revision
    return latents.numpy().tobytes(), images.numpy().tobytes()


def _copy(folder: Path) -> None:
    from rcdeploy.model_files import copy_component

    for name in ("text_encoder", "tokenizer", "vae"):
        copy_component(folder, name, Path("pipeline") / name)


def _nothing_leaked() -> None:
    for file in Path("pipeline").rglob("*") if Path("pipeline").is_dir() else ():
        if file.is_file() and SECRET.encode() in file.read_bytes():
            raise Failed(f"{file} has the contents of a file outside the teacher")
        if file.suffix in (".bin", ".ckpt", ".pt", ".pkl"):
            raise Failed(f"a pickle was copied to {file}")


def _config(folder: Path, random: Random, _secret: Path) -> tuple[str, str]:
    names = ("unet/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    name = random.choice((*names, "model_index.json", *names))
    file = folder / name
    if random.random() < 0.12:
        data, words = broken_json(random, file.read_bytes())
    else:
        value, words = mutated_json(random, json.loads(file.read_bytes()))
        data = json_text(value)
    file.write_bytes(data)
    return f"{name}: {words}", ANY


def _tensors(folder: Path, random: Random, _secret: Path) -> tuple[str, str]:
    import torch
    from safetensors.torch import load_file, save_file

    name = random.choice(COMPONENTS)
    file = next((folder / name).glob("*.safetensors"))
    tensors = load_file(file)
    key = random.choice(sorted(tensors))
    kind = random.choice(("absent", "unknown", "shape", "nan", "inf", "dtype", "scalar", "none"))
    if kind == "absent":
        del tensors[key]
    elif kind == "unknown":
        tensors[f"{key}.more"] = torch.zeros(3)
    elif kind == "shape":
        tensors[key] = torch.zeros(*tensors[key].shape, 2)
    elif kind in ("nan", "inf"):
        tensors[key].view(-1)[random.randrange(tensors[key].numel())] = float(kind)
    elif kind == "dtype":
        tensors[key] = tensors[key].to(random.choice((torch.float16, torch.int64, torch.float64)))
    elif kind == "scalar":
        tensors[key] = torch.tensor(1.0)
    else:
        tensors = {}
    save_file(tensors, file, metadata={"format": "pt"})
    is_any = kind == "dtype" or "position_ids" in key
    return f"{name}: tensor {key}: {kind}", ANY if is_any else REFUSED


def _bytes(folder: Path, random: Random, _secret: Path) -> tuple[str, str]:
    file = next((folder / random.choice(COMPONENTS)).glob("*.safetensors"))
    data, words = harmed(random, file.read_bytes())
    file.write_bytes(data)
    return f"{file.relative_to(folder)}: {words}", ANY


def _tokenizer(folder: Path, random: Random, _secret: Path) -> tuple[str, str]:
    file = folder / "tokenizer" / random.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json"))
    if random.random() < 0.15:
        data, words = broken_json(random, file.read_bytes())
    else:
        value, words = mutated_json(random, json.loads(file.read_bytes()))
        data = json_text(value)
    file.write_bytes(data)
    return f"tokenizer/{file.name}: {words}", ANY


def _code(folder: Path, random: Random, _secret: Path) -> tuple[str, str]:
    """Code beside a config that names it. If it runs, it writes outside its folder, which is always a failure."""
    name = random.choice(("tokenizer", "text_encoder", "unet", "vae"))
    code = 'open("../ran", "w").write("x")\nclass Mine:\n    pass\n'
    (folder / name / "mine.py").write_text(code)
    config = folder / name / ("tokenizer_config.json" if name == "tokenizer" else "config.json")
    data = json.loads(config.read_bytes())
    data["auto_map"] = dict.fromkeys(("AutoModel", "AutoConfig"), "mine.Mine") | {"AutoTokenizer": ["mine.Mine", None]}
    if random.random() < 0.7:
        data["tokenizer_class" if name == "tokenizer" else "_class_name"] = "Mine"
    config.write_bytes(json_text(data))
    return f"{name}: a config that names code beside it", ANY


class _Opens:
    """Unpickling it writes outside the attempt's folder."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, ("../unpickled", "w"))


def _pickle(folder: Path, random: Random, _secret: Path) -> tuple[str, str]:
    name = random.choice(COMPONENTS)
    weights = next((folder / name).glob("*.safetensors"))
    beside = weights.with_name("pytorch_model.bin" if name == "text_encoder" else "diffusion_pytorch_model.bin")
    beside.write_bytes(pickle.dumps(_Opens()))
    if random.random() < 0.5:
        return f"{name}: a pickle beside its weights", SAME
    if random.random() < 0.5:
        weights.write_bytes(beside.read_bytes())
        return f"{name}: a pickle with the name of its weights", REFUSED
    weights.unlink()
    return f"{name}: a pickle instead of its weights", REFUSED


def _special(folder: Path, random: Random, secret: Path) -> tuple[str, str]:
    file = random.choice([f for f in sorted(folder.rglob("*")) if f.is_file() and "judge" not in f.parts])
    words = replace_by_special(random, file, secret)
    needed = file.name not in ("model_index.json", "tokenizer_config.json")
    return f"{file.relative_to(folder)}: {words}", REFUSED if needed else ANY


def _beside(folder: Path, random: Random, secret: Path) -> tuple[str, str]:
    """Links beside the model's files: they are not needed, and their targets must stay where they are."""
    component = random.choice(("text_encoder", "tokenizer", "vae", "unet"))
    name = random.choice(("notes.txt", "vocab.txt", "added_tokens.json", "merges.txt", "more", "README.md"))
    if (folder / component / name).exists():
        name = "notes.txt"
    (folder / component / name).symlink_to(random.choice((secret, secret.parent)))
    return f"{component}/{name}: a link to a file of its user", ANY


MUTATIONS: list[tuple[Callable[[Path, Random, Path], tuple[str, str]], int]] = [
    (_config, 8),
    (_tensors, 4),
    (_bytes, 3),
    (_tokenizer, 5),
    (_code, 1),
    (_pickle, 1),
    (_special, 3),
    (_beside, 1),
]


FAMILY = Family("Teachers", run, share=130, seconds=60)
