"""What all pages share: the engine of their templates, its filters, and the head (templates/head.html)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def environment(package: str) -> jinja2.Environment:
    """The templates of a package, those of this one, which any may import, and the filters below."""
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("fer.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "short": short,
        "points": points,
        "decimal": decimal,
        "p_value": p_value,
    }
    return engine


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.6571 -> 65.7; a dash for nothing."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float | None, digits: int = 1) -> str:
    """0.0123 -> +1.2, with its sign; a dash for nothing."""
    return "–" if difference is None else f"{100 * difference:+.{digits}f}".replace("-", "−")


def number(value: float | None) -> str:
    """1234567 -> 1,234,567; a dash for nothing."""
    return "–" if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """Three significant digits, without an exponent: 0.01234 -> 0.0123, 12.345 -> 12.3; a dash for nothing."""
    if value is None:
        return "–"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def p_value(p: float) -> str:
    """0.0372 -> 0.037; 0.00001 -> < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds as `45 s`, `12 min 5 s` or `3 h 20 min`; a dash for nothing."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def short(digest: str | None) -> str:
    """The first twelve digits of a digest; a dash for nothing."""
    return "–" if not digest else digest[:12]
