"""A page cannot forget to escape: HTML is written in templates alone, and every template escapes."""

import ast
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from pipeline.pages.page import SHARED, environment, render

ROOT = Path(__file__).parents[3]
ROOMS = ("pipeline", "data_prep", "eval")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TEMPLATES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.html"))
TAG = re.compile(r"</?(?:div|p|td|th|tr|table|span|svg|h[1-6]|li|ul|ol|img|a|section|article|figure|script)\b[^<]*>?")
UNESCAPED_FOR_A_REASON: dict[str, str] = {}  # file name of a template: why it may say `|safe`
HOSTILE = '<script>alert(1)</script>"onload="x" {{7*7}} {% raw %} </style></title>'


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_templates_and_modules_to_look_at() -> None:
    assert len(TEMPLATES) > 10 and len(MODULES) > 100


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_writes_html(path: Path) -> None:
    """No escaping by hand, nothing declared safe, and no tag in any string, f-strings and docstrings included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"html", "markupsafe"}, path
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            assert (node.module or "").split(".")[0] not in ("html", "markupsafe"), path
            assert not names & {"Markup", "escape"} or node.module == "re", path
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not TAG.search(node.value), f"{path}:{node.lineno}: {node.value[:80]!r}; write it in a template"


@pytest.mark.parametrize("path", TEMPLATES, ids=name_of)
def test_no_template_turns_escaping_off(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name not in UNESCAPED_FOR_A_REASON:
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", text), path
    unquoted = re.findall(r"<[^<>{}]*?\s[\w-]+=\{\{.*?\}\}", text)
    assert not unquoted, f"{path}: an attribute without quotes: {unquoted}"


@pytest.mark.parametrize("path", TEMPLATES, ids=name_of)
def test_every_template_can_be_read(path: Path) -> None:
    in_shared = path.parent == SHARED
    environment(path.parent).get_template(f"pages/{path.name}" if in_shared else path.name)


@pytest.mark.parametrize("name", ["a.html", "a.txt", "a"])
def test_a_value_is_text_in_every_template_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('<b title="{{ value }}">{{ value }}</b>', encoding="utf-8")
    page = render(tmp_path, name, value=HOSTILE)
    assert "<script" not in page and page.count('"') == 2 and page.count("{{7*7}}") == 2 and "49" not in page


def test_a_name_without_a_value_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("{{ missing }}", encoding="utf-8")
    with pytest.raises(UndefinedError, match="missing"):
        render(tmp_path, "a.html")


def test_the_frame_asks_nothing_of_any_server(tmp_path: Path) -> None:
    page = render(tmp_path, "pages/page.html", title=HOSTILE)
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
    assert "default-src 'none'" in page and page.count("<script") == 0 and page.count("</title>") == 1
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
