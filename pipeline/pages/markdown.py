"""Markdown of cards: text of foreign origin is shown as it is and becomes no link, image, heading, HTML or table."""

import re
from collections.abc import Iterable, Sequence

MARKS = re.compile(r"([!#$&()*+\-.:<=>@\[\\\]^_`{|}~])")  # what Markdown may read; it takes a backslash before each
FENCE = "```"


def escaped(text: str, most: int = 300) -> str:
    """The text in one line, cut to so many characters, with a backslash before every mark that Markdown may read."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    line = line if len(line) <= most else f"{line[:most]}..."
    return MARKS.sub(r"\\\1", line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown, so foreign text in them must be escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def fenced(text: str, language: str = "") -> str:
    """A block of code; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(len(FENCE), longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
