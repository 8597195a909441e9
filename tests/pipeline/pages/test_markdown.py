"""Foreign text in Markdown is shown as it is: a Markdown parser finds nothing in it but text."""

import pytest

from pipeline.pages.markdown import escaped, fenced, table

HOSTILE = [
    "<script>alert(1)</script>",
    "[a](javascript:alert(1)) ![b](http://x.y/z.png)",
    "http://tracker.example/a and www.example.com, a@b.cd",
    "a | b | c",
    "# heading",
    "- item",
    "1. one",
    "1) one",
    "> quote",
    "a\n===",
    "`code` **bold** _it_ ~~no~~",
    "line\n\n---\n\n# second",
    "\\ \\\\ &lt; &#60; &amp;",
    "<!-- x -->",
    "\u2028\u202e\x1b[31m",
    "```\n~~~",
    "[x]: http://a.b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_parser_finds_only_the_text(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page = parser.parse(table(("one", "two"), [(escaped(text), "end")]) + "\n" + escaped(text) + "\n")
    kinds = {token.type for token in page}
    assert kinds <= {
        *("table_open", "thead_open", "tr_open", "th_open", "inline", "th_close", "tr_close", "thead_close"),
        *("tbody_open", "td_open", "td_close", "tbody_close", "table_close", "paragraph_open", "paragraph_close"),
    }
    inline = [token for token in page if token.type == "inline"]
    assert len(inline) == 5  # two headings, two cells, one paragraph
    assert all(child.type in ("text", "text_special") for token in inline for child in token.children)
    shown = "".join(child.content for child in inline[-1].children)
    assert shown == " ".join("".join(each if each.isprintable() else " " for each in text).split())


def test_long_text_is_cut_and_a_fence_is_longer_than_any_inside() -> None:
    assert escaped("a" * 400) == "a" * 300 + "\\.\\.\\."
    assert fenced("a\n````\nb\n", "yaml") == "`````yaml\na\n````\nb\n`````\n"
