"""Conditions on the columns of a table (--keep-where), such as `similarity>=0.3`: which rows are kept.

A condition is a column, an operator and a value. It is compared, never evaluated.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.shards.ledger import Drop

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
EQUALITY = ("==", "!=")
FORM = re.compile(r"\s*([^=!<>]+?)\s*(==|!=|>=|<=|>|<)\s*([^=!<>]+?)\s*")


@dataclass(frozen=True)
class Condition:
    """A row is kept if its value in `column` stands in this relation to `value`, a number or a text."""

    column: str
    operator: str
    value: float | str

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.15g}"
        return f"{self.column}{self.operator}{value}"

    def fault(self, found: Any) -> str | None:
        """Why a row with this value is dropped, or None."""
        value = _number(found) if isinstance(self.value, float) else _text(found)
        if value is None:
            return "no_value_to_compare"
        return None if OPERATORS[self.operator](value, self.value) else "condition_not_met"


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of --keep-where. Raises ValueError on what is none, and on an order of texts."""
    conditions = []
    for text in texts:
        if not (match := FORM.fullmatch(text)):
            raise ValueError(
                f"--keep-where {text!r}: is not a condition; give COLUMN, one of {' '.join(OPERATORS)}, and a value, "
                'as in "similarity>=0.3"'
            )
        number = _number(match[3])
        if number is None and match[2] not in EQUALITY:
            raise ValueError(f"--keep-where {text!r}: {match[3]!r} is not a number; compare texts by == or !=")
        conditions.append(Condition(match[1], match[2], match[3] if number is None else number))
    return tuple(conditions)


def failed(conditions: Sequence[Condition], values: Sequence[Any]) -> Drop | None:
    """Why a row with these values, one for each condition, is dropped; None if it meets them all."""
    faults = [condition.fault(value) for condition, value in zip(conditions, values, strict=True)]
    return next((Drop(fault) for fault in faults if fault), None)


def _number(value: Any) -> float | None:
    """The value as a finite number, also of a CSV, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str | None:
    """The value as a text; None for no value, of which a CSV has empty fields."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value).strip() or None if isinstance(value, str | int | float) else None
