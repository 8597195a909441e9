"""A locale whose encoding is ISO-8859-1, as old clusters have it. Debian brings none."""

import subprocess
from pathlib import Path

NAME = "xx_XX.ISO-8859-1"
LOCALE = """escape_char /
LC_CTYPE
upper <U0041>..<U005A>
lower <U0061>..<U007A>
digit <U0030>..<U0039>
space <U0020>;<U0009>..<U000D>
END LC_CTYPE
"""


def latin1_environment(folder: Path) -> dict[str, str]:
    """The variables of a process in such a locale, which is compiled into the folder."""
    codes = "\n".join(f"<U{code:04X}> /x{code:02x} C{code}" for code in range(256))
    (folder / "map").write_text(f"<code_set_name> ISO-8859-1\n<escape_char> /\nCHARMAP\n{codes}\nEND CHARMAP\n")
    (folder / "source").write_text(LOCALE)
    compiled = ["localedef", "-c", "-i", str(folder / "source"), "-f", str(folder / "map"), str(folder / NAME)]
    subprocess.run(compiled, check=False, capture_output=True)  # it warns of the categories that are left out
    return {"LOCPATH": str(folder), "LC_ALL": NAME}
