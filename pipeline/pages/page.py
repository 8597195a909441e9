"""Make an HTML page from templates. A page is one file: it asks nothing of any server and runs no script.

Templates are jinja2 files. A folder of the program holds its own templates; `pages/NAME` is a shared one.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED = Path(__file__).with_name("templates")


def render(folder: Path, template: str, **values: Any) -> str:
    """The text of `template`, a file in `folder` or `pages/NAME`, filled with the values."""
    return environment(folder).get_template(template).render(values)


@lru_cache
def environment(folder: Path) -> "Environment":
    """How templates are read.

    Every value is escaped, in every template: a value is text and never becomes a tag. A name without a value is an
    error (jinja2.UndefinedError), not an empty place on the page.
    """
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined

    loader = ChoiceLoader([FileSystemLoader(folder), PrefixLoader({"pages": FileSystemLoader(SHARED)})])
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,  # a line that holds only a {% tag %} leaves no line on the page
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
