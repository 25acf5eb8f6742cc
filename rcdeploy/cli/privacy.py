"""Telemetry of other libraries is off unless the user has decided otherwise; docs/privacy.md has the list."""

from __future__ import annotations

import os

TELEMETRY_SWITCHES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, diffusers: library versions in the user agent
    "NNCF_CI": "1",  # nncf: an event for each quantisation, to Google Analytics
}
"""variables that the libraries read when they are imported, and the values that turn telemetry off"""


def disable_telemetry() -> None:
    """Set the switches that the user has not set. Called once, before a command imports anything."""
    for variable, value in TELEMETRY_SWITCHES.items():
        os.environ.setdefault(variable, value)
