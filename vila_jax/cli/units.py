"""Numbers as people read them."""


def seconds(value: int | float) -> str:
    """`0.0123` -> `12 ms`, `3.21` -> `3.2 s`."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def size(count: int) -> str:
    """Bytes: `1536` -> `1.50 KiB`."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{number(value)} {unit}"


def count(value: int | float) -> str:
    """`7063427072` -> `7.06 B`, `20979712` -> `21.0 M`."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{number(value / scale)} {letter}"
    return f"{value:.0f}"


def number(value: int | float) -> str:
    """Three digits at least: `3.21`, `32.1`, `321`, `3,210`."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


def rate(value: int | float, unit: str) -> str:
    """`7.9e14`, `FLOP/s` -> `790 TFLOP/s`."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{number(value / scale)} {letter}{unit}"
    return f"{number(value)} {unit}"
