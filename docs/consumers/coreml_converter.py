"""Converts a diffusers folder for Core ML, and runs nothing: FOLDER."""

import sys
import tempfile
from pathlib import Path

from rcdeploy.progress import no_progress
from rcdeploy_export.export_options import ExportOptions
from rcdeploy_export.package import export_package
from rcdeploy_export.source import ExportSource

with tempfile.TemporaryDirectory() as temporary:
    options = ExportOptions(format="coreml", precision="fp16", encoder=False)
    export_package(ExportSource.open(Path(sys.argv[1])), Path(temporary) / "p", options, no_progress)
