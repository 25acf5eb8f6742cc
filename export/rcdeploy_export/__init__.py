"""From a diffusers folder to a package that runs without torch."""
