"""The recipe's sections of data: where samples come from, what one is, and which are held out."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import NotNegative, OneOrMore, Positive, Section

Weight = Annotated[float, Field(ge=0, le=1000)]
SampleKind = Literal["image", "caption", "question"]
AnswerKind = Literal["one", "all"]


class Data(Section):
    """Where the samples come from, and how a picture and a caption are drawn. Set either `manifest` or `urls`."""

    manifest: Path | None = None
    """the manifest of the shards, as `data_prep.index` writes it"""
    urls: OneOrMore | None = None
    """tars to stream instead: `https:`, `http:`, or `pipe:` with a shell command; braces such as `{0..9}` expand"""
    sample: SampleKind = "image"
    """how often a picture comes in an epoch: `image`: once, with one of its captions, drawn; `caption`: once for each
    of its captions; `question`: once for each question about it. An answer's loss is the sum over its tokens, and the
    mean is over questions"""
    answers: AnswerKind = "one"
    """answers that a question is trained on at each visit: `one`, drawn by its count; `all`, each distinct one with its
    share of the counts as its weight. The expected loss is the same; `all` runs the language model once an answer"""
    source_weights: dict[str, Weight] | None = None
    """how often a sample of a source occurs in an epoch, on average; without a weight 1 time; 0 leaves a source out"""
    loss_weights: dict[str, Weight] | None = None
    """factor on the loss of a source's samples in stage 2; without a weight 1; the sum is still divided by all
    questions, or all scored tokens of captions"""
    pairs_per_sequence: Positive = 1
    """of stage 2: pictures of one source, each with its text, that the language model reads one after the other. Each
    text is scored, and sees its own and earlier pictures and texts. `batch.micro_size` must be a multiple"""
    num_workers: Annotated[int, Field(ge=0)] = 4
    """processes of a rank that load pictures"""
    max_text_tokens: Positive = 32
    """longest caption, in tokens; longer ones are cut. With `language.prompt` a causal model's BOS, prompt and end
    count, and a long question loses its beginning"""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """smallest and largest share of the picture's area that a random crop takes"""
    horizontal_flip: bool = True
    """mirror half of the pictures"""
    shuffle_shards: Positive = 64
    """samples are mixed within a block of N shards"""

    @model_validator(mode="after")
    def _crop_scale_is_a_range(self) -> "Data":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: is not a range; set [low, high] with 0 < low <= high <= 1")
        return self

    @model_validator(mode="after")
    def _samples_come_from_one_place(self) -> "Data":
        if (self.manifest is None) == (not self.urls):
            raise ValueError("needs exactly one of manifest and urls; set one, and set the other to null")
        for name in ("source_weights", "loss_weights"):
            if self.urls and getattr(self, name):
                raise ValueError(
                    f"{name}: cannot be used with urls, which do not say their source; remove it, or use a manifest"
                )
        if self.urls and self.sample != "image":
            raise ValueError(
                f"sample {self.sample!r}: needs a manifest, which has the numbers of texts; set data.manifest"
            )
        if self.answers == "all" and self.sample != "question":
            raise ValueError(f"answers 'all': sample is {self.sample!r}, which has no answers; set sample=question")
        return self

    def check_sources(self, there: Collection[str]) -> None:
        """Raises ValueError when a weight names a source that is not `there`."""
        for field in ("source_weights", "loss_weights"):
            for name in getattr(self, field) or {}:
                if name not in there:
                    known = ", ".join(sorted(there))
                    raise ValueError(f"data.{field}.{name}: the manifest has no such source; there are {known}")


class Validation(Section):
    """Held-out pairs: their losses are logged, and the checkpoint with the lowest loss is kept."""

    manifest: Path
    """the manifest of the held-out pairs"""
    every_steps: NotNegative = 1000
    """steps between two measurements; 0: at the end of every epoch, with `run.epochs`"""
    samples: Positive = 2048
    """pairs that are measured, from the beginning of a fixed order"""
    sample_texts: NotNegative = 8
    """pictures whose text is written to samples.jsonl at each measurement, for themselves and with another picture in
    their place: by the language model, in stage 1 by ITG's head; 0: none"""
    on_training_data: bool = False
    """allow samples that `data.manifest` has too; they show how well the data are learnt, not held-out losses"""
