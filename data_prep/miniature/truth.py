"""Decides whether a caption is true of a scene: it parses the grammar of the drawn world, and checks each claim.

    caption    := [lead] (count ["including" noun] | clause ("and" clause)*) [setting]  |  setting-first
    clause     := noun [["is"] relation noun]
    noun       := ("a" | "an" | "the" | "one") [size] [colour] (shape | "thing" | "shape")

The nouns of a caption mean different things. A caption is true if some assignment of things to nouns makes all its
claims true.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from data_prep.miniature.captions import LEADS, NUMBER_WORDS, RELATION_WORDS, SIZE_WORDS, holds
from data_prep.miniature.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing

ANY_SHAPE = ("thing", "shape")


@dataclass(frozen=True)
class Noun:
    """What one noun phrase claims about its thing; None means no claim."""

    shape: str | None
    colour: str | None
    size: str | None

    def fits(self, thing: Thing) -> bool:
        claims = ((self.shape, thing.shape), (self.colour, thing.colour), (self.size, thing.size))
        return all(claimed is None or claimed == actual for claimed, actual in claims)


@dataclass(frozen=True)
class Claims:
    """All claims of a caption: nouns, relations between nouns by index, the number of things, the background."""

    nouns: tuple[Noun, ...]
    relations: tuple[tuple[int, str, int], ...]
    number: int | None
    background: str | None


def is_true(caption: str, scene: Scene) -> bool:
    """Whether the caption can be parsed and all its claims are true of the scene. Case and full stops are ignored."""
    claims = parse(caption)
    if claims is None or claims.background not in (None, scene.background):
        return False
    if claims.number not in (None, len(scene.things)):
        return False
    return any(
        all(noun.fits(thing) for noun, thing in zip(claims.nouns, chosen, strict=True))
        and all(holds(relation, chosen[a], chosen[b]) for a, relation, b in claims.relations)
        for chosen in permutations(scene.things, len(claims.nouns))
    )


def parse(caption: str) -> Claims | None:
    """The claims of the caption, or None if it is not a sentence of the grammar."""
    words = caption.lower().replace(".", " ").split()
    background, remaining = _take_setting(words)
    if remaining is None:
        return None
    words = remaining
    for lead in (*LEADS, "there are"):
        if words[: len(lead.split())] == lead.split():
            words = words[len(lead.split()) :]
            break
    number = None
    if len(words) > 1 and words[0] in NUMBER_WORDS and words[1] in ("thing", "things", "shape", "shapes"):
        number, words = NUMBER_WORDS.index(words[0]) + 1, words[2:]
        if words[:1] == ["including"]:
            words = words[1:]
        elif words:
            return None
        else:
            return Claims((), (), number, background)
    return _parse_clauses(words, number, background)


def _take_setting(words: list[str]) -> tuple[str | None, list[str] | None]:
    """Remove `a BACKGROUND background with` from the front or `on a BACKGROUND background` from the end."""
    if "background" not in words:
        return None, words
    if len(words) > 4 and words[0] == "a" and words[1] in BACKGROUNDS and words[2:4] == ["background", "with"]:
        background, rest = words[1], words[4:]
    elif len(words) > 4 and words[-4] in ("on", "with") and words[-3] in ("a", "the") and words[-2] in BACKGROUNDS:
        background, rest = words[-2], words[:-4]
    else:
        return None, None
    return (None, None) if "background" in rest else (background, rest)


def _parse_clauses(words: list[str], number: int | None, background: str | None) -> Claims | None:
    nouns: list[Noun] = []
    relations: list[tuple[int, str, int]] = []
    for clause in _split(words, "and"):
        noun, rest = _take_noun(clause)
        if noun is None:
            return None
        nouns.append(noun)
        if not rest:
            continue
        relation, rest = _take_relation(rest[1:] if rest[0] == "is" else rest)
        other, rest = _take_noun(rest)
        if relation is None or other is None or rest:
            return None
        relations.append((len(nouns) - 1, relation, len(nouns)))
        nouns.append(other)
    return Claims(tuple(nouns), tuple(relations), number, background)


def _split(words: list[str], at: str) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word == at:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _take_relation(words: list[str]) -> tuple[str | None, list[str]]:
    for phrase, relation in RELATION_WORDS.items():
        length = len(phrase.split())
        if words[:length] == phrase.split():
            return relation, words[length:]
    return None, words


def _take_noun(words: list[str]) -> tuple[Noun | None, list[str]]:
    if not words or words[0] not in ("a", "an", "the", "one"):
        return None, words
    rest = words[1:]
    size = SIZE_WORDS.get(rest[0]) if rest else None
    rest = rest[1:] if size else rest
    colour = rest[0] if rest and rest[0] in COLOURS else None
    rest = rest[1:] if colour else rest
    if not rest or rest[0] not in SHAPES + ANY_SHAPE:
        return None, words
    return Noun(rest[0] if rest[0] in SHAPES else None, colour, size), rest[1:]
