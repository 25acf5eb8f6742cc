"""Bounds on the arguments of a caller and on the contents of a package, in one place."""

from __future__ import annotations

# what `generate` and `stream` take
MAX_PROMPT_CHARACTERS = 10_000
"""of one prompt; CLIP reads 77 tokens, a few hundred characters"""
MAX_IMAGES_PER_CALL = 1_000
"""prompts times batch; more images are more calls"""
MAX_IMAGE_SIDE = 8_192
"""pixels of height or width"""
MAX_INPUT_IMAGE_SIDE = 32_768
"""pixels of height or width of `image` and `mask`, which are resized"""
MAX_GUIDANCE_SCALE = 1_000.0
MIN_SEED = -(2**63)
MAX_SEED = 2**64 - 1
"""what torch's manual_seed takes; seeds are the keys of a Philox generator, modulo 2^64"""
MAX_THREADS = 1_024
MIN_MEMORY_GB = 0.01
"""ONNX Runtime ignores limits of a few bytes"""
MAX_MEMORY_GB = 1_000_000

# what a package may hold
MAX_JSON_BYTES = 8 * 2**20
"""of the manifest and the configurations"""
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_PACKAGE_BYTES = 64 * 2**30
"""more than any package of ours; checked before anything is allocated"""
MAX_PACKAGE_FILES = 10_000
MAX_PROTOBUF_BYTES = 2**31
MAX_CONTEXT = 4_096
"""tokens of a prompt: a tokenizer's model_max_length"""
MAX_NORMALIZERS = 4
"""of a tokenizer that insert text; CLIP's has one, which makes a space of several"""
MAX_NORMALIZER_CHARACTERS = 4
"""that one of them inserts"""
MAX_PATTERNS = 4
"""regular expressions of a tokenizer; CLIP's has two"""
MAX_PATTERN_CHARACTERS = 400
MAX_PATTERN_OPTIONALS = 2
"""parts of one alternative that may be absent"""
MAX_TRAIN_TIMESTEPS = 100_000
MAX_LATENT_SIDE = 4_096
"""of the shape of latents, channels included"""
MAX_PIXELS_PER_LATENT = 64
MAX_SCALING_FACTOR = 1_000.0

# what is kept on a machine
MAX_TUNING_BYTES = 64 * 2**10
MAX_TUNING_FILES = 64
"""of one package: one a machine that shares the cache folder"""
