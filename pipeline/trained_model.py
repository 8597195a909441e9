"""A trained model for use from Python: pictures and text in, text or numpy arrays out. `pipeline.load` makes one.

A picture is a PIL image, a path, a URL, a file's bytes, or pixels as `load_evaluation_pixels` has them. Shapes: N
pictures, T texts, Q queries, E projection width, G patches on a side of a picture.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline import prompts
from pipeline.config import Recipe
from pipeline.config.section import from_home
from pipeline.data.transforms import load_evaluation_pixels
from pipeline.models.inference import LanguageModel, RetrievalModel
from pipeline.models.language import Decoding
from pipeline.models.marked_text import MARK
from pipeline.models.sampling import Nucleus, check_sampling
from pipeline.web.picture import fetch_picture, is_url

Picture = Image.Image | Path | str | bytes | Tensor
Pictures = Picture | Sequence[Picture | Sequence[Picture]]
"""One picture, or a list; a list within it holds the pictures of one prompt, which has a mark `<image>` for each."""
Texts = str | Sequence[str]
Turn = tuple[str, str]
"""A question and its answer."""
Floats = NDArray[np.float32]
Item = TypeVar("Item")
PICTURES_AT_ONCE = 32
TEXTS_AT_ONCE = 128


class Scores(NamedTuple):
    """How pictures and texts fit, fp32 [N, T]; a dimension is missing where one picture or one text was given."""

    itc: Floats  # cosine: the largest over the queries
    itm: Floats  # probability that they belong together
    rerank: Floats  # ITC plus ITM's match logit, by which evaluation ranks


class Model:
    """A trained model. One picture or text gives one result; a list of them gives a list, or one more dimension."""

    def __init__(self, model: LanguageModel | RetrievalModel) -> None:
        self.model = model
        self.stage: Literal[1, 2] = model.stage
        self.recipe: Recipe = model.recipe
        self.image_size_px = model.image_size_px

    def caption(self, picture: Pictures, prompt: Texts | None = None, **how: Any) -> Any:
        """A caption, str; see `write` for `how`. Defaults are evaluation's.

        With a `prompt` of your own, the text that continues it may be as short as one token.
        """
        model = self._stage2("caption")
        pictures = _listed(picture, "picture")
        shortest = prompts.MIN_CAPTION_TOKENS[model.language_kind] if prompt is None else 1
        begin = prompts.caption_prompt(self.recipe) if prompt is None else prompt
        shortest = min(shortest, how.get("max_new_tokens", shortest))
        defaults = prompts.CAPTION_DECODING | {"min_new_tokens": shortest}
        texts = self.write(pictures, _each(begin, len(pictures), "prompt"), **(defaults | how))
        return texts if _is_list(picture) else texts[0]

    def answer(
        self,
        picture: Pictures,
        question: Texts,
        prompt: Texts | None = None,
        earlier: Sequence[Turn] = (),
        **how: Any,
    ) -> Any:
        """The answer to a question, str. Picture and question may both be lists; one alone goes with all of the other.

        `prompt` has {} for the question; `earlier` are turns of a conversation about the picture. Defaults are
        evaluation's; see `write` for `how`.
        """
        model = self._stage2("answer")
        count = max(len(_listed(picture, "picture")), len(_listed(question, "question")))
        template = prompts.question_prompt(self.recipe, model.language_kind) if prompt is None else prompt
        filled: list[str] = []
        read = []
        for begin, asked in zip(_each(template, count, "prompt"), _each(question, count, "question"), strict=True):
            if not isinstance(asked, str) or not asked.strip():
                raise ValueError(f"question {asked!r:.80} is no text with a word; ask something")
            if MARK in asked:
                raise ValueError(f"question {asked!r:.80} has a mark {MARK}; marks of pictures stand in the prompt")
            cleaned = prompts.as_trained(asked, self.recipe)
            filled.append(prompts.conversation(earlier, begin, prompts.fill(begin, cleaned)))
            read.append(prompts.read_by_qformer(cleaned, filled[-1], self.recipe))
        of_qformer = [each for each in read if each is not None] or None
        texts = self.write(_each(picture, count, "picture"), filled, of_qformer, **(prompts.ANSWER_DECODING | how))
        return texts if _is_list(picture) or _is_list(question) else texts[0]

    def write(
        self,
        pictures: Sequence[Picture | Sequence[Picture]],
        texts: Sequence[str],
        read: Sequence[str] | None = None,
        *,
        top_p: float | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        **decoding: Any,
    ) -> list[str]:
        """Continue each text after its picture, or after its pictures, each in the place of its mark `<image>`.

        `read` is what a Q-Former reads that was trained on questions.
        `decoding` are the fields of `Decoding`. With `top_p`, tokens are drawn in place of a beam search: what is drawn
        depends on `seed`, picture and text alone, not on what is asked beside them.
        """
        model = self._stage2("write")
        check_sampling(top_p, temperature, seed)
        how = Decoding(**decoding)
        if how.min_new_tokens > how.max_new_tokens:
            raise ValueError(
                f"--min-new-tokens (min_new_tokens) {how.min_new_tokens}: is above {how.max_new_tokens}, the most; "
                "lower it"
            )
        written: list[str] = []
        for start in range(0, len(texts), PICTURES_AT_ONCE):
            part = slice(start, start + PICTURES_AT_ONCE)
            groups = [_listed(each, "pictures of a prompt") for each in pictures[part]]
            shown = {id(picture): picture for group in groups for picture in group}  # each is encoded once
            pixels_N3SS = self._pixels(list(shown.values()))
            numbers = {key: number for number, key in enumerate(shown)}
            several = [[numbers[id(picture)] for picture in group] for group in groups]
            marked = any(_is_list(each) for each in pictures[part]) or any(MARK in text for text in texts[part])
            if top_p is not None:
                seeds = [_seed(seed or 0, pixels_N3SS[n], text) for n, text in zip(several, texts[part], strict=True)]
                choice = Nucleus(top_p, 1.0 if temperature is None else temperature, seeds)
                how = replace(how, choice=choice, num_beams=1)
            asked = None if read is None else read[part]
            if marked:
                written += model.generate(pixels_N3SS, texts[part], how, pictures_of=several)
            else:
                written += model.generate(pixels_N3SS, texts[part], how, [n for [n] in several], asked)
        return written

    def embed(
        self, picture: Pictures | None = None, *, text: Texts | None = None, pooled: Literal["none", "mean"] = "none"
    ) -> Floats:
        """Unit-length features of pictures or of texts, fp32: a picture's queries [Q, E], or a text's [CLS] [E].

        The cosine of picture and text is the largest over Q. `mean` gives one row a picture: [E].
        """
        model = self._stage1("embed")
        if (picture is None) == (text is None):
            raise ValueError("embed: takes a picture or text=...; give one of the two")
        if text is not None:
            parts = _parts(_texts(text), TEXTS_AT_ONCE)
            found = [model.embed_texts(model.tokenise(part)) for part in parts]
        else:
            some = _parts(_listed(picture, "picture"), PICTURES_AT_ONCE)
            found = [model.embed_images(model.encode_images(self._pixels(part))) for part in some]
            if pooled == "mean":
                found = [torch.nn.functional.normalize(rows_BQE.mean(dim=1), dim=-1) for rows_BQE in found]
        rows = np.concatenate([each.float().cpu().numpy() for each in found])
        return rows if _is_list(picture if text is None else text) else rows[0]

    def match(self, picture: Pictures, texts: Texts) -> Scores:
        """ITC and ITM of each picture with each text."""
        model = self._stage1("match")
        batches = [model.tokenise(part) for part in _parts(_texts(texts), TEXTS_AT_ONCE)]
        text_TE = torch.cat([model.embed_texts(batch) for batch in batches]).float()
        rows: list[list[Tensor]] = []
        for part in _parts(_listed(picture, "picture"), PICTURES_AT_ONCE):
            frozen_BPI = model.encode_images(self._pixels(part))
            for frozen_PI, query_QE in zip(frozen_BPI, model.embed_images(frozen_BPI).float(), strict=True):
                itc_T = (query_QE @ text_TE.T).amax(dim=0)
                logits_T2 = model.class_logits(frozen_PI, batches).float()
                rows.append([itc_T, logits_T2.softmax(dim=1)[:, 1], itc_T + logits_T2[:, 1]])
        place = (slice(None) if _is_list(picture) else 0, slice(None) if _is_list(texts) else 0)
        return Scores(*(torch.stack(column).cpu().numpy()[place] for column in zip(*rows, strict=True)))

    def attention(self, picture: Pictures, question: Texts | None = None) -> Floats:
        """What each query looks at, on a square of patches that covers the picture: fp32 [Q, G, G].

        They are shares of its attention in the Q-Former's last layer with cross-attention, averaged over heads. What
        is left of 1 went to the encoder's other tokens, as CLS. A Q-Former that reads questions needs a `question`.
        """
        pictures = _listed(picture, "picture")
        read: list[str] | None = None
        if question is not None and isinstance(self.model, LanguageModel) and self.model.reader is not None:
            template = prompts.question_prompt(self.recipe, self.model.language_kind)
            asked = [prompts.as_trained(each, self.recipe) for each in _each(question, len(pictures), "question")]
            read = [prompts.read_by_qformer(each, prompts.fill(template, each), self.recipe) or each for each in asked]
        found = []
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            part = slice(start, start + PICTURES_AT_ONCE)
            pixels_N3SS = self._pixels(pictures[part])
            if isinstance(self.model, LanguageModel):
                found.append(self.model.attention(pixels_N3SS, None if read is None else read[part]))
            else:
                found.append(self.model.attention(pixels_N3SS))
        maps = np.concatenate([each.float().cpu().numpy() for each in found])
        return maps if _is_list(picture) else maps[0]

    def _pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """uint8 [N, 3, S, S]. Raises ValueError that names the picture that cannot be read."""

        def load(number: int, picture: Picture) -> Tensor:
            if isinstance(picture, Tensor):
                return picture
            if isinstance(picture, str):
                return load_pixels(from_home(picture), self.image_size_px, allow_loopback=False)
            if not isinstance(picture, Image.Image | Path | bytes):
                raise ValueError(f"picture: is of type {type(picture).__name__}; give a PIL image, a path or bytes")
            name = f"picture {number} of {len(pictures)}" if len(pictures) > 1 else "a picture"
            return load_evaluation_pixels(picture, self.image_size_px, name)

        return torch.stack([load(number, each) for number, each in enumerate(pictures, start=1)])

    def _stage1(self, what: str) -> RetrievalModel:
        if not isinstance(self.model, RetrievalModel):
            raise ValueError(f"{what}: needs weights of stage 1, and these are of stage 2; load a stage-1 run")
        return self.model

    def _stage2(self, what: str) -> LanguageModel:
        if not isinstance(self.model, LanguageModel):
            raise ValueError(f"{what}: needs weights of stage 2, and these are of stage 1; load a stage-2 run")
        return self.model


def load(weights: str | Path, recipe: str | Path | Recipe | None = None, edits: Sequence[str] = ()) -> Model:
    """The model of a run, a checkpoint, a LAVIS file, or a folder or hub id of transformers; the last three need a
    recipe. Raises ValueError in one line for weights that cannot be used. See `pipeline.load`."""
    import sys

    import torch

    from pipeline.config import load_recipe
    from pipeline.distributed import process_group
    from pipeline.weights.any_format import find_weights, load_any, warning_of

    settings = load_recipe(_at(recipe), edits) if isinstance(recipe, str | Path) else recipe
    source = find_weights(_at(weights), settings, edits)
    with torch.inference_mode(False), torch.enable_grad():  # the trial of a language model computes a gradient
        model, notes = load_any(source, process_group.device_name())
    if warning := warning_of(source, notes):
        print(warning, file=sys.stderr)
    return Model(model)


def load_pixels(image: str, size_px: int, allow_loopback: bool) -> Tensor:
    """A file's or URL's picture as evaluation has it: uint8 [3, S, S]. Raises OSError or ValueError in one line."""
    if not is_url(image):
        return load_evaluation_pixels(Path(image), size_px)
    return load_evaluation_pixels(fetch_picture(image, allow_loopback), size_px, image)


def _at(place: str | Path) -> Path:
    return Path(from_home(str(place)))


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _listed(value: Any, what: str) -> Sequence[Any]:
    if _is_list(value) and not value:
        raise ValueError(f"{what}: is an empty list; give at least one")
    return value if _is_list(value) else [value]  # type: ignore[no-any-return]


def _texts(value: Any) -> Sequence[str]:
    for text in (items := _listed(value, "text")):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {text!r:.80} is no text with a word; give one")
    return items


def _each(value: Any, count: int, what: str) -> Sequence[Any]:
    """A list of `count`; one alone goes with all."""
    items = _listed(value, what)
    if len(items) not in (1, count):
        raise ValueError(f"{what}: has {len(items)} entries for {count}; give one for each, or one for all")
    return items if len(items) == count else [items[0]] * count


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _seed(seed: int, pixels_3SS: Tensor, text: str) -> int:
    content = hashlib.sha256(f"{seed}\n{text}\n".encode() + pixels_3SS.numpy().tobytes())
    return int.from_bytes(content.digest(), "little")
