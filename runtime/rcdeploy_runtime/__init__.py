"""rcdeploy_runtime: what a device needs. Numpy and the standard library here; never torch."""

__version__ = "0.1.0"
