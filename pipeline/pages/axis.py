"""The room of a chart in its picture, where the ticks of an axis stand, and how a number is written."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """An SVG's size and its margins, in units of its viewBox. Values are drawn between the margins."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def across(self, share: float) -> float:
        """The x of a value: 0 is the left margin, 1 the right one."""
        return self.left + share * (self.width - self.left - self.right)

    def up(self, share: float) -> float:
        """The y of a value: 0 is the bottom margin, 1 the top one."""
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that span low to high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, last + 1)]


def shown_number(value: float) -> str:
    """Three significant figures, without zeros at the end; 1000 to 9999 in full, with a comma."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace(".00e", "e")
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
