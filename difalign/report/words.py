"""Numbers as people read them: rounding, signs, durations, and what an interval says in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MISSING = "–"
FEW_PROMPTS = 10  # below this a percentile bootstrap interval is noticeably too narrow


def number(value: object) -> float | None:
    """``value`` as a float (it may be NaN or infinite), or None if it is not a number at all."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(str(value))
    return None


def finite(value: object) -> float | None:
    """``value`` as a finite float, else None."""
    result = number(value)
    return result if result is not None and math.isfinite(result) else None


def score(value: object, *, digits: int = 3) -> str:
    """A score such as 0.531; a dash if there is none, and words if it is not finite."""
    result = number(value)
    if result is None:
        return MISSING
    return _fixed(result, digits) if math.isfinite(result) else "not finite"


def signed(value: object, *, digits: int = 3) -> str:
    """A difference such as +0.081 or −0.012; zero has no sign."""
    result = finite(value)
    if result is None:
        return score(value)
    text = _fixed(result, digits)
    return f"+{text}" if result > 0 and float(text) != 0.0 else text


def interval(bounds: object, *, digits: int = 3) -> str:
    """An interval such as "+0.050 to +0.112"; a dash if there is none."""
    pair = finite_pair(bounds)
    return MISSING if pair is None else f"{signed(pair[0], digits=digits)} to {signed(pair[1], digits=digits)}"


def finite_pair(bounds: object) -> tuple[float, float] | None:
    """The two ends of an interval if both are finite numbers, else None."""
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        return None
    low, high = finite(bounds[0]), finite(bounds[1])
    return None if low is None or high is None else (low, high)


def verdict(bounds: object) -> str:
    """What a 95 % interval of a gain says: above 0, below 0, or not distinguishable from 0."""
    pair = finite_pair(bounds)
    if pair is None:
        return "no interval"
    if pair[0] > 0:
        return "above 0"
    return "below 0" if pair[1] < 0 else "not distinguishable from 0"


def count(value: object) -> str:
    """A whole number with thin groups of three, such as 12 345 (narrow no-break spaces)."""
    result = finite(value)
    return MISSING if result is None else f"{result:,.0f}".replace(",", "\u202f")


def duration(seconds: object) -> str:
    """Seconds as "42 s", "4 min 12 s" or "3 h 05 min"."""
    value = finite(seconds)
    if value is None:
        return MISSING
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def compact(value: object) -> str:
    """Any number in about four significant digits, for tables and tooltips."""
    result = number(value)
    if result is None:
        return MISSING
    if not math.isfinite(result):
        return "not finite"
    if result == round(result) and abs(result) < 1e7:
        return count(result).replace("-", "−")
    text = f"{result:.4g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def gain_sentence(summary: Mapping[str, object]) -> str:
    """The result of a run in one or two sentences, honest about what the interval allows to say."""
    bounds = summary.get("gain_ci95")
    gain = finite(summary.get("gain"))
    if gain is None:
        return "The gain could not be computed: a score is missing or not finite."
    amount = f"{signed(gain)} (95 % interval {interval(bounds)})" if finite_pair(bounds) else signed(gain)
    sentence = {
        "above 0": f"Training raised the held-out score by {amount}.",
        "below 0": f"Training lowered the held-out score: {amount}.",
        "not distinguishable from 0": f"The change of {amount} is not distinguishable from 0.",
        "no interval": f"The held-out score changed by {amount}; one prompt gives no interval.",
    }[verdict(bounds)]
    prompts = finite(summary.get("prompts"))
    if finite_pair(bounds) and prompts is not None and prompts < FEW_PROMPTS:
        sentence += f" With only {count(prompts)} prompts the interval is too narrow; read it with care."
    return sentence


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = f"{0.0:.{digits}f}"  # no "-0.000"
    return text.replace("-", "−")
