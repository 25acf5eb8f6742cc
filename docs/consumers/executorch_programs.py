"""One image by ExecuTorch, of a diffusers folder, which it exports first: FOLDER SETTINGS (JSON) IMAGE (raw RGB)."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from rcdeploy.progress import no_progress
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.source import ExportSource
from rcdeploy_runtime import TextToImage
from rcdeploy_runtime.sampling_defaults import SamplingDefaults

folder, settings, image = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
sampling = SamplingDefaults("ddim", settings["num_inference_steps"], settings["guidance_scale"])
with tempfile.TemporaryDirectory() as temporary:
    package = Path(temporary) / "p"
    options = ExportOptions(format="executorch", sampling=sampling, encoder=False)
    export_package(ExportSource.open(folder), package, options, no_progress)
    images, _ = TextToImage.load(package, threads=1).generate(**settings)
image.write_bytes(np.asarray(images[0]).tobytes())
