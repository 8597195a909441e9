"""One self-contained HTML page: style, escaping, pictures as data: URIs. It asks nothing of any server."""

import base64
import io
from html import escape
from pathlib import Path

THUMBNAIL_PX = 256  # the longest side of a picture in the page
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, sections: list[str]) -> str:
    """The whole document; sections are HTML already, empty ones are left out."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    body = "\n".join(section for section in sections if section)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{escape(title)}</h1>
{body}
</main></body>
</html>
"""


def picture(source: Path | bytes, alt: str) -> str:
    """An <img> of a file or of its bytes, made small; words in its place when it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # a damaged file makes Pillow raise many kinds
        return f'<p class="unreadable">picture not readable: {escape(str(error))}</p>'
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=82)
    encoded = base64.b64encode(content.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{encoded}" {size} alt="{escape(alt, quote=True)}">'


def table(header: list[str], rows: list[list[str]], css_class: str = "") -> str:
    """A table; cells are HTML already, the first of a row is its heading."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f'<table class="{css_class}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
