"""One image by openvino-genai, of an OpenVINO package: FOLDER SETTINGS (JSON) IMAGE (raw RGB)."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from genai import genai_image

folder, settings, image = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
del settings["height"], settings["width"]  # always 64
image.write_bytes(genai_image(folder, **settings).astype(np.uint8).tobytes())
