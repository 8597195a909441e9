"""data_prep/TROUBLESHOOTING.md lists every drop reason of the code, and says rightly which ones are temporary."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.copies import picture_rules
from data_prep.shards import ledger
from data_prep.shards.ledger import Drop
from pipeline.web import url_guard

ROOM = Path(ledger.__file__).parents[1]
GUARD = Path(url_guard.__file__).parent
REFUSALS = ("Drop", "RefusedError")
"""What is called with a reason as its first argument."""
FAULTS = ("fault", "_fault")
"""The functions that return a reason as a text."""


def reasons_of_the_page() -> dict[str, str]:
    """Reason -> its kind, or "" in the table of capfilt."""
    section = (ROOM / "TROUBLESHOOTING.md").read_text().partition("## Drop reasons\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \|.*?(?:\| (temporary|final) )?\|$", section, re.MULTILINE)
    return {reason: kind for reason, kind in rows if reason != "Reason"}


def reasons_of_the_code() -> Iterator[str]:
    yield from ledger.TEMPORARY
    yield from (reason for _, reason in ledger.PHRASES)
    yield from filter(None, picture_rules.REASONS)
    for path in (*ROOM.rglob("*.py"), *GUARD.glob("*.py")):
        text = path.read_text()
        yield from re.findall(r"guard:([a-z]\w+)", text)
        yield from re.findall(r'dropped\["(\w+)"\]', text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in REFUSALS and node.args:
                yield from _texts(node.args[0])
            if isinstance(node, ast.FunctionDef) and node.name in FAULTS:
                for each in ast.walk(node):
                    if isinstance(each, ast.Return) and each.value:
                        yield from _texts(each.value)


def _texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression can be: of `a or b`, and of `a if c else b`, both."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for part in (*getattr(node, "values", ()), *(getattr(node, name, None) for name in ("body", "orelse"))):
        if isinstance(part, ast.expr):
            yield from _texts(part)


def test_the_page_has_the_reasons_of_the_code() -> None:
    of_page = {reason for reason in reasons_of_the_page() if not reason.startswith("http_")}
    assert of_page == set(reasons_of_the_code()) - {""}


def test_the_page_knows_which_reasons_are_temporary() -> None:
    kinds = {reason: kind for reason, kind in reasons_of_the_page().items() if kind}
    assert len(kinds) > 25
    assert kinds == {reason: "temporary" if Drop.named(reason).temporary else "final" for reason in kinds}
