"""Numbers for a reader: with a unit of fitting size and three significant digits."""

from __future__ import annotations

_COUNTS = ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
_BYTES = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))


def count_text(number: float) -> str:
    """859,520,964 -> '859.5 M'."""
    for unit, name in _COUNTS:
        if number >= unit:
            return _three_digits(number / unit) + name
    return f"{number:g}"


def bytes_text(number: float) -> str:
    """2,082,536 -> '2.08 MB'."""
    for unit, name in _BYTES:
        if number >= unit:
            return _three_digits(number / unit) + name
    return f"{number:.0f} bytes"


def seconds_text(number: float) -> str:
    """0.0421 -> '42.1 ms'; 421 -> '421.0 s'."""
    return f"{number * 1e3:.3g} ms" if number < 1 else f"{_three_digits(number)} s"


def giga_text(macs: int) -> str:
    """GMACs with two digits after the point, as in the paper's Table A; four for toys."""
    return f"{macs / 1e9:.2f}" if macs >= 1e10 else f"{macs / 1e9:.4f}"


def image_size_text(size: tuple[int, int]) -> str:
    """(height, width) -> 'HxW', as --size takes it."""
    return f"{size[0]}x{size[1]}"


def _three_digits(number: float) -> str:
    if number >= 1000:
        return f"{number:.0f}"
    return f"{number:#.4g}".rstrip(".") if number >= 100 else f"{number:#.3g}"
