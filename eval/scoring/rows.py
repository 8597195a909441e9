"""The rows of metrics.json."""

from typing import Any

import numpy as np

DECIMALS = 4


def metric_row(name: str, protocol: str, subset: str, value: float, low: float, high: float) -> dict[str, Any]:
    """One number with its interval, in percent or as papers print it."""
    rounded = {"value": round(float(value), DECIMALS), "low": _number(low), "high": _number(high)}
    return {"name": name, "protocol": protocol, "subset": subset, **rounded}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DECIMALS)
