"""Troubleshooting pages: every error line that a room's code can print is on its page, and every row is such a line.

A message is read from the source: what it raises as ValueError (or a class of its own made of one), gives to
`parser.error`, or prints after `error: `; argparse's own error for the value of a flag counts too. What varies in it is
`…`. A row covers it when the row's code span is the message, with `…` for anything. Rows in bold are lines of Python or
of other programs, which no source here holds. Tables in the READMEs of slurm and of the miniature are compared one way.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [(room, f"{room}/TROUBLESHOOTING.md") for room in ("pipeline", "data_prep", "eval")]
VARIES = "…"


def _sources(room: str) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted((ROOT / room).rglob("*.py"))]


def _error_classes() -> set[str]:
    """ValueError, ArgumentTypeError, and the project's classes that are made of ValueError or of OSError."""
    trees = [tree for room in ("pipeline", "data_prep", "eval") for _, tree in _sources(room)]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"ValueError", "OSError"}
    for _ in range(3):  # as deep as classes are made of one another
        found |= {each.name for each in classes if {ast.unparse(base) for base in each.bases} & found}
    return found - {"OSError"} | {"ArgumentTypeError"}


ERRORS = _error_classes()


def _template(node: ast.expr) -> str:
    """The text of an expression, `…` for what varies."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    return VARIES


def _choices(node: ast.expr) -> list[ast.expr]:
    """Of `a or b`, and of `a if c else b`, both."""
    if isinstance(node, ast.BoolOp):
        return node.values
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def messages_of(room: str) -> Iterator[tuple[str, str]]:
    """(message, where it is) for all error messages with a text of their own."""
    for path, tree in _sources(room):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
            for choice in _choices(call.args[0]):
                text = " ".join(_template(choice).split())
                is_printed = name == "print" and text.startswith("error: ")
                text = text.removeprefix("error: ") if is_printed else text
                if (is_printed or name in {*ERRORS, "error"}) and re.search(r"\w", text):
                    yield text, f"{path.relative_to(ROOT)}:{call.lineno}"


def rows_of(page: str) -> list[str]:
    """The first code span of each row of the page's tables."""
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / page).read_text(), re.MULTILINE)


def covers(row: str, message: str) -> bool:
    return bool(re.fullmatch(".*".join(map(re.escape, row.split(VARIES))), message))


@pytest.mark.parametrize(("room", "page"), PAGES)
def test_every_error_line_is_on_the_page(room: str, page: str) -> None:
    rows = rows_of(page)
    missing = [f"{where}: {text}" for text, where in messages_of(room) if not any(covers(row, text) for row in rows)]
    assert not missing, f"{page} lacks rows for:\n" + "\n".join(missing)


@pytest.mark.parametrize(("room", "page"), PAGES)
def test_every_row_of_the_page_is_an_error_line(room: str, page: str) -> None:
    messages = [text for text, _ in messages_of(room)]
    stale = [row for row in rows_of(page) if not any(covers(row, text) for text in messages)]
    assert not stale, f"{page} has rows that no code prints:\n" + "\n".join(stale)


@pytest.mark.parametrize(("room", "page"), PAGES)
def test_rows_say_something_and_say_it_once(room: str, page: str) -> None:
    rows = rows_of(page)
    assert len(rows) == len(set(rows)) > 20
    assert all(len(re.findall(r"\w", row)) >= 5 for row in rows)
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
    assert all(line.count(" | ") == 2 and line.endswith(" |") for line in lines), "line, meaning, what to do"
    assert not [line for line in lines if re.search(r"(?<!\.)\. \|", line.partition("` |")[2])], (
        "no full stop ends a cell"
    )


def test_a_row_covers_a_message_where_their_constant_texts_agree() -> None:
    assert covers("recipe …: no such file", "recipe …: no such file")
    assert covers("…: no such file", "recipe …: no such file")
    assert not covers("recipe …: no such file", "manifest …: no such file")
    assert not covers("recipe …: no such", "recipe …: no such file")


def section_of(page: str, title: str) -> str:
    """The text under a heading of a page."""
    return (ROOT / page).read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def spans_of(page: str) -> list[str]:
    """All code spans in the first cells of the troubleshooting table of a room's README."""
    rows = [line for line in section_of(page, "Troubleshooting").splitlines() if line.startswith("|")]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def lines_of_scripts() -> list[str]:
    """Lines of the job scripts, and the messages of the commands that they call before a job's own."""
    scripts = [path for path in (ROOT / "slurm").iterdir() if path.suffix not in (".md", ".example")]
    lines = [line.replace(":?", ": ") for path in scripts for line in path.read_text().splitlines()]
    return lines + [text for text, _ in messages_of("pipeline")]


def lines_of_the_miniature() -> list[str]:
    """Every text in the miniature's sources, `…` for what varies."""
    nodes = [node for _, tree in _sources("data_prep/miniature") for node in ast.walk(tree)]
    return [" ".join(_template(node).split()) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


@pytest.mark.parametrize(
    ("page", "lines_of"),
    [("slurm/README.md", lines_of_scripts), ("data_prep/miniature/README.md", lines_of_the_miniature)],
)
def test_rows_of_a_readme_are_lines_of_its_code(page: str, lines_of: Callable[[], list[str]]) -> None:
    spans, lines = spans_of(page), lines_of()
    patterns = {span: re.compile(".*".join(map(re.escape, span.split(VARIES)))) for span in spans}
    assert len(spans) >= 5
    assert not [span for span, pattern in patterns.items() if not any(map(pattern.search, lines))]
