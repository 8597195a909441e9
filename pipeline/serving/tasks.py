"""What the page may ask of a model: from a line of JSON and pictures to JSON. All texts and their number are bounded.

Nothing is kept between two requests: the page sends the picture and the conversation each time.
"""

from itertools import accumulate
from typing import Annotated, Any

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.command_line import printable
from pipeline.files import first_fault, parse_json
from pipeline.pictures.decoding import opened
from pipeline.prompts import CHAT_DECODING, CHAT_TURNS, chat_prompt
from pipeline.serving.http_server import Desk, Reply, Task, as_json
from pipeline.trained_model import Model
from pipeline.web.picture import fetch_picture

MAX_TEXTS = 32
MAX_TEXT_LENGTH = 500
MAX_CONVERSATION_LENGTH = 4000
"""Characters of all turns: attention's memory grows with their square."""
MAX_PICTURES = 8  # of one prompt
WAITING = 8


def _plain(text: str) -> str:
    return printable(" ".join(text.split()))


Answer = Annotated[str, StringConstraints(max_length=MAX_TEXT_LENGTH), AfterValidator(_plain)]
Prompt = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_CONVERSATION_LENGTH),
    AfterValidator(lambda text: "\n".join(map(printable, text.splitlines()))),  # examples stand on lines of their own
]
Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT_LENGTH), AfterValidator(_plain)
]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Caption(_Asked):
    prompt: Prompt | None = None
    sizes: Annotated[list[int], Field(min_length=1, max_length=MAX_PICTURES)] | None = None
    """Bytes of each picture, where there are several."""


class _Question(_Asked):
    question: Text
    earlier: Annotated[list[Annotated[list[Answer], Field(min_length=2, max_length=2)]], Field(max_length=CHAT_TURNS)]


class _MayAsk(_Asked):
    question: Text | None = None


class _Texts(_Asked):
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class _Url(_Asked):
    url: Annotated[str, StringConstraints(max_length=2000)]


class Tasks:
    """The tasks of a model; one computes at a time, and one picture is fetched at a time."""

    def __init__(self, model: Model, allow_loopback: bool = False) -> None:
        self.model, self.allow_loopback = model, allow_loopback
        self.computing, self.fetching = Desk(WAITING), Desk(WAITING)

    def by_path(self) -> dict[str, Task]:
        """The tasks that weights of this stage have, by the paths that the page asks."""
        of_stage = {"match": self.match} if self.model.stage == 1 else {"caption": self.caption, "answer": self.answer}
        tasks = {"picture": self.picture, "attention": self.attention, **of_stage}
        return {f"/{name}": task for name, task in tasks.items()}

    def picture(self, line: bytes, _: bytes) -> Reply:
        """The picture behind a URL, as it is, so that the page has what the model gets."""
        asked = _read(line, _Url)
        with self.fetching.turn():
            content = fetch_picture(asked.url, self.allow_loopback)
        try:
            with opened(content) as image:
                return Image.MIME[str(image.format)], content
        except Exception as error:  # Pillow raises many kinds for a damaged file
            raise ValueError(f"{asked.url}: is not readable as a picture ({error})") from error

    def caption(self, line: bytes, picture: bytes) -> Reply:
        """What the model writes after the prompt, which has a mark `<image>` for each of several pictures."""
        asked = _read(line, _Caption)
        shown = picture if asked.sizes is None else [_parts(picture, asked.sizes)]
        with self.computing.turn():
            text = self.model.caption(shown, asked.prompt)
        return as_json({"text": _plain(text if asked.sizes is None else text[0])})

    def answer(self, line: bytes, picture: bytes) -> Reply:
        """The answer after the turns before it, as `pipeline.generate --chat` gives it."""
        asked = _read(line, _Question)
        turns = [(question, answer) for question, answer in asked.earlier]
        if len(asked.question) + sum(map(len, (text for turn in turns for text in turn))) > MAX_CONVERSATION_LENGTH:
            raise ValueError(
                f"earlier: the conversation is longer than {MAX_CONVERSATION_LENGTH} characters; start over"
            )
        with self.computing.turn():
            prompt = chat_prompt(self.model.recipe)
            return as_json({"text": _plain(self.model.answer(picture, asked.question, prompt, turns, **CHAT_DECODING))})

    def match(self, line: bytes, picture: bytes) -> Reply:
        asked = _read(line, _Texts)
        with self.computing.turn():
            scores = self.model.match(picture, asked.texts)
        return as_json({"itc": scores.itc.tolist(), "itm": scores.itm.tolist()})

    def attention(self, line: bytes, picture: bytes) -> Reply:
        """Each query's map, row by row, rounded to what a screen can show."""
        asked = _read(line, _MayAsk)
        with self.computing.turn():
            maps_QGG = self.model.attention(picture, asked.question)
        return as_json({"side": maps_QGG.shape[1], "queries": maps_QGG.reshape(len(maps_QGG), -1).round(5).tolist()})


def _parts(content: bytes, sizes: list[int]) -> list[bytes]:
    """The pictures that stand one after the other."""
    if min(sizes) < 1 or sum(sizes) != len(content):
        raise ValueError(f"sizes {sizes}: are not those of pictures with {len(content)} bytes in all; send them again")
    ends = list(accumulate(sizes))
    return [content[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _read(line: bytes, kind: type[Any]) -> Any:
    """Raises ValueError that names the field."""
    try:
        return kind.model_validate(parse_json(line))
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error
