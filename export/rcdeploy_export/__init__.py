"""rcdeploy_export: from a diffusers folder to a package that runs without torch."""
