"""Numbers as a person reads them."""

import math
from datetime import UTC, datetime


def count(value: float) -> str:
    """12, 3,400, 1.24 M, 13.0 B, 1.50 T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}" if value < 1000 * size else f"{value:,.0f}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def share(value: float | None) -> str:
    """87.3%, or a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if value < 0.9995 or value >= 1 else f"{value:.2%}"


def moment(seconds: float) -> str:
    """2026-11-27 20:39:19, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a damaged record
        return "unknown"


def figure(value: float, digits: int = 4) -> str:
    """Some significant digits, without an exponent where it reads better."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{digits}g}"
    return f"{value:.{digits - 1}e}"
