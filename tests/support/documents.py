"""python -m tests.support.documents FILE.md...: how a document reads, and what it names that does not exist.

Measures leave out code blocks, tables and headings. A list item is a sentence, an inline code span is one word.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tests.support.named_things import ROOT, faults_of_command, faults_of_word

SHELL = ("", "bash", "sh")
"""Labels of code blocks that hold commands."""
FENCE = re.compile(r" *(?:```|~~~) *(\w*)")
ITEM = re.compile(r"^ *(?:[-*+]|\d+[.)])\s+")
LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(<?([^)\s>]+)>?[^)]*\)")
SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_\[]*[A-Z0-9])")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|vs|al|etc)\.")
LEAST_WORDS = 3  # less is a label


@dataclass(frozen=True)
class Block:
    """A paragraph, a list item, a heading, a table row or a code block; `label` is the code block's."""

    kind: str
    text: str
    label: str = ""


def blocks_of(text: str) -> list[Block]:
    """A document's blocks, in order."""
    blocks: list[Block] = []
    lines = iter(re.sub("<!--.*?-->", "", text, flags=re.DOTALL).splitlines())
    waiting = False  # whether the next line continues the last paragraph or item
    for line in lines:
        if fence := FENCE.match(line):
            code = []
            for inner in lines:
                if FENCE.fullmatch(inner.rstrip()):
                    break
                code.append(inner)
            blocks.append(Block("code", "\n".join(code), fence[1]))
            waiting = False
        elif line.startswith("#"):
            blocks.append(Block("heading", line.lstrip("# ")))
            waiting = False
        elif line.lstrip().startswith("|"):
            blocks.append(Block("row", line))
            waiting = False
        elif not line.strip():
            waiting = False
        elif waiting and not ITEM.match(line):
            blocks[-1] = Block("prose", f"{blocks[-1].text} {line.strip()}")
        else:
            blocks.append(Block("prose", ITEM.sub("", line.removeprefix("> ")).strip()))
            waiting = True
    return blocks


def sentences_of(text: str) -> list[str]:
    """The sentences of paragraphs and list items, with links as their texts and code spans as one word."""
    found = []
    for block in blocks_of(text):
        if block.kind == "prose":
            plain = LINK.sub(r"\1", SPAN.sub("Code", block.text))
            plain = ABBREVIATION.sub(r"\1", plain)
            found += [each for each in SENTENCE_END.split(plain) if len(words_of(each)) >= LEAST_WORDS]
    return found


def words_of(sentence: str) -> list[str]:
    return [word for word in sentence.split() if re.search(r"\w", word)]


@dataclass(frozen=True)
class Measures:
    """Lines and words of the whole file, and the lengths of its sentences in words."""

    lines: int
    words: int
    mean: float
    longest: int
    longest_sentence: str


def measure(text: str) -> Measures:
    sentences = sentences_of(text) or [""]
    lengths = [len(words_of(each)) for each in sentences]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    mean = sum(lengths) / len(lengths)
    return Measures(len(text.splitlines()), len(text.split()), mean, lengths[longest], sentences[longest])


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    seen: Counter[str] = Counter()
    anchors = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for block in blocks_of(text):
        if block.kind == "heading":
            plain = LINK.sub(r"\1", block.text).lower()
            slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
            anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return anchors


def dead_links(path: Path, text: str) -> Iterator[str]:
    """Links to files, folders and headings that are not there; links to the web are left alone."""
    for block in blocks_of(text):
        if block.kind == "code":
            continue
        for _text, target in LINK.findall(SPAN.sub("Code", block.text)):
            if re.match(r"[a-z]+:", target):
                continue
            place, _, anchor = unquote(target).partition("#")
            file = path.parent / place if place else path
            if not file.exists():
                yield f"link {target}: no such file"
            elif anchor and file.suffix == ".md":
                there = text if file == path else file.read_text()
                if anchor not in anchors_of(there):
                    yield f"link {target}: no such heading"


def unknown_names(path: Path, text: str) -> Iterator[str]:
    """Commands, flags, recipe fields, make targets and files that the document names and that do not exist."""
    for block in blocks_of(text):
        if block.kind != "code":
            for _ticks, span in SPAN.findall(block.text):
                words = split_words(span)
                yield from faults_of_command(words)
                for word in words:
                    yield from faults_of_word(word, path.parent, alone=len(words) == 1)
            continue
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            words = split_words(line.strip().removeprefix("$ "))
            if block.label in SHELL:
                yield from faults_of_command(words)
            for word in words:
                yield from faults_of_word(word, path.parent, alone=False)


def split_words(line: str) -> list[str]:
    """A line as a shell splits it, without its comment; as it stands where quotes do not match."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def documents() -> list[Path]:
    """Every Markdown file of the project."""
    rooms = ("data_prep", "ds_configs", "eval", "pipeline", "slurm", "tests")
    return sorted([*ROOT.glob("*.md"), *(path for room in rooms for path in (ROOT / room).rglob("*.md"))])


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        text = path.read_text()
        found = measure(text)
        print(f"{name}: {found.lines} lines, {found.words} words, {found.mean:.1f} words a sentence")
        print(f"    longest ({found.longest}): {found.longest_sentence}")
        for fault in dict.fromkeys([*dead_links(path, text), *unknown_names(path, text)]):
            print(f"    {fault}")


if __name__ == "__main__":
    main()
