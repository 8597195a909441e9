"""The recipe: the typed fields of one run of one stage, their defaults (the paper's values) and cross-checks."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

Precision = Literal["fp32", "bf16", "fp16"]
FIELD_AND_VALUE = re.compile(r"\w+(\.\w+)*=.*", re.DOTALL)  # an item of --set
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, le=1000)]
OneOrMore = Annotated[tuple[str, ...], BeforeValidator(lambda it: (it,) if isinstance(it, str) else it)]


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Vision(Section):
    """The frozen image encoder: any timm ViT by name, `hf-hub:OWNER/NAME`, or `local-dir:FOLDER`."""

    name: str
    precision: Precision = "fp16"
    image_size_px: Positive = 224


class QFormer(Section):
    """The Querying Transformer. Its size and initial weights are those of `bert`, a hub id or a local folder."""

    bert: str = "bert-base-uncased"
    num_query_tokens: Positive = 32
    cross_attention_every: Positive = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    projection_width: Positive = 256
    precision: Literal["fp32", "bf16"] = "bf16"


class Language(Section):
    """The frozen language model of stage 2: any transformers causal or seq2seq LM, by hub id or local folder."""

    name: str
    precision: Precision
    end_text: str = "\n"
    config: dict[str, bool | int | float | str] = {}  # replaces fields of the model's own configuration
    activation_checkpointing: bool = False  # recompute each layer on the way back: less memory, a third more work


class Objectives(Section):
    """Weights and settings of stage 1's three losses (paper, section 3.2)."""

    itc_weight: float = 1.0
    itm_weight: float = 1.0
    itg_weight: float = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    negatives: Literal["softmax", "softmax_plus_epsilon"] = "softmax"


class Data(Section):
    """Where the samples come from, and how an image and a caption are drawn from one.

    Either `manifest`, or as a fallback without its promises `urls` of tars (braces expand): https:, http:, and `pipe:`
    with a shell command. `source_weights` says how often a sample of a source occurs in an epoch (see mixture.py).
    """

    manifest: Path | None = None
    urls: OneOrMore | None = None
    source_weights: dict[str, Weight] | None = None  # of the shards' `source`; one that is not named weighs 1
    num_workers: Annotated[int, Field(ge=0)] = 4
    max_text_tokens: Positive = 32
    crop_scale: tuple[float, float] = (0.5, 1.0)
    horizontal_flip: bool = True
    shuffle_shards: Positive = 64

    @model_validator(mode="after")
    def _crop_scale_is_a_range(self) -> "Data":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: needs 0 < low <= high <= 1")
        return self

    @model_validator(mode="after")
    def _samples_come_from_one_place(self) -> "Data":
        if (self.manifest is None) == (not self.urls):
            raise ValueError("needs either manifest or urls; set one of them, and the other to null")
        if self.urls and self.source_weights:
            raise ValueError(
                "source_weights: only a manifest says which source a shard is of; leave them out with urls"
            )
        return self

    def check_sources(self, there: Collection[str]) -> None:
        """Raises ValueError when a weight names a source that is not `there`."""
        for name in self.source_weights or {}:
            if name not in there:
                known = ", ".join(sorted(there))
                raise ValueError(f"data.source_weights.{name}: no shard of the manifest is of it; there are {known}")


class Validation(Section):
    """Held-out pairs: their losses are logged, and the checkpoint with the lowest one is kept."""

    manifest: Path
    every_steps: Positive = 1000
    samples: Positive = 2048


class Batch(Section):
    """Batch identity: global = micro x accumulation x world size (checked when the world size is known).

    Without `accumulation`, stage 2 takes what the number of ranks needs, so that a job goes on with fewer; stage 1,
    whose contrastive losses compare the pairs of one pass, takes 1.
    """

    global_size: Positive
    micro_size: Positive
    accumulation: Positive | None = None

    def num_passes(self, world_size: int) -> int:
        """Micro batches a rank has in one optimizer step."""
        return self.accumulation or max(1, self.global_size // (self.micro_size * world_size))

    def check(self, world_size: int) -> None:
        """Raises ValueError, naming the numbers, when the batch identity does not hold."""
        passes = self.num_passes(world_size)
        product = self.micro_size * passes * world_size
        if product != self.global_size:
            raise ValueError(
                f"batch: global_size {self.global_size} is not micro_size {self.micro_size} x accumulation "
                f"{passes} x {world_size} ranks = {product}; change one of them"
            )

    def check_samples(self, samples: int, of: str = "the manifest") -> None:
        """Raises ValueError when `of`, an epoch's samples, is smaller than one global batch."""
        if samples < self.global_size:
            raise ValueError(f"batch.global_size {self.global_size}: {of} has only {samples} samples; lower it")


class Optimizer(Section):
    """AdamW with linear warmup and cosine decay to a minimum, per optimizer step (paper, section 4.1)."""

    peak_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    minimum_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 2000
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    max_gradient_norm: Annotated[float, Field(ge=0)] = 1.0


class Run(Section):
    """How long, where to, and how often to log and save."""

    output: Path
    steps: Positive
    zero: Path = Path("ds_configs/zero1.json")
    layout: Literal["replicated", "sharded"] = "replicated"  # sharded: the language model under ZeRO-3, too
    log_every_steps: Positive = 50
    checkpoint_every_steps: Positive = 1000
    keep_checkpoints: Positive = 2
    keep_every_steps: Positive | None = None  # checkpoints of these steps stay, whatever comes after
    resume_despite: OneOrMore = ()  # what may differ from the checkpoint's run: field names, manifest, towers
    hang_deadline_s: Annotated[float, Field(ge=1, le=1_000_000)] = 1800.0


class Faults(Section):
    """What is done about losses that are not finite or leap, and about a checkpoint that cannot be written."""

    spike_factor: Annotated[float, Field(gt=1)] | None = None  # a step with a loss this many times the usual is skipped
    stop_after: Positive = 10  # skipped steps in a row
    save_failure: Literal["stop", "continue"] = "stop"


class Recipe(Section):
    """One run of one stage."""

    stage: Literal[1, 2]
    seed: int = 42
    init_weights: Path | None = None
    init_from_other_towers: bool = False  # take init_weights though they were trained with other towers
    vision: Vision
    qformer: QFormer = QFormer()
    language: Language | None = None
    objectives: Objectives = Objectives()
    data: Data
    validation: Validation | None = None
    batch: Batch
    optimizer: Optimizer = Optimizer()
    faults: Faults = Faults()
    run: Run

    @model_validator(mode="after")
    def _stage_has_its_parts(self) -> "Recipe":
        if self.stage == 2 and self.language is None:
            raise ValueError("language: stage 2 needs a language model; add the section")
        if self.stage == 1 and self.language is not None:
            raise ValueError("language: stage 1 has no language model; remove the section")
        if self.stage == 1 and self.run.layout == "sharded":
            raise ValueError("run.layout 'sharded': stage 1 has no language model to shard; leave it out")
        if (
            self.stage == 1
            and self.objectives.itm_weight
            and self.batch.global_size // (self.batch.accumulation or 1) < 2
        ):
            raise ValueError("batch: image-text matching draws negatives among the pairs of one pass; use two or more")
        return self

    @model_validator(mode="after")
    def _what_may_differ_has_a_name(self) -> "Recipe":
        for name in self.run.resume_despite:
            known = name.split(".")[0] in ("manifest", "towers") or name == "batch.pass_size"  # what states have beside
            if not known and not _is_field(name.split("."), Recipe):
                raise ValueError(f"run.resume_despite {name!r}: is no field of a recipe, manifest or towers")
        return self


def _is_field(path: list[str], section: type[Section]) -> bool:
    """Whether a dotted name leads to a field of a section, or into one that has no fields of its own."""
    field = section.model_fields.get(path[0])
    if field is None or len(path) == 1:
        return field is not None
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    sections = [kind for kind in kinds if issubclass(kind, Section)]
    return _is_field(path[1:], sections[0]) if sections else True


def for_ranks(recipe: Recipe, world_size: int) -> Recipe:
    """The recipe with its accumulation decided and the batch identity checked. Raises ValueError naming the numbers."""
    batch = recipe.batch
    passes = 1 if recipe.stage == 1 and batch.accumulation is None else batch.num_passes(world_size)
    decided = batch.model_copy(update={"accumulation": passes})
    decided.check(world_size)
    return recipe.model_copy(update={"batch": decided})


def _one_line(error: ValidationError) -> str:
    """The first fault of a validation, as `field: value: what is wrong`."""
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"])
    value = "" if isinstance(fault["input"], dict | BaseModel) else f" {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "unknown field; see pipeline/config.py for the fields there are"
    if fault["type"] == "tuple_type":
        message = "needs a list, as [a, b]"
    return f"{field}{value}: {message}" if field else message


def parse_recipe(content: dict[str, Any]) -> Recipe:
    """Validate a recipe's content. Raises ValueError with one line that names the field, its value and the fault."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"recipe: {_one_line(error)}") from error


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, apply `a.b=v` overrides, validate. Raises ValueError with one line naming file and field."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        raise ValueError(f"recipe {path}: no such file; the shipped ones are in pipeline/recipes/")
    try:
        settings = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path}: not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(settings, DictConfig):
        raise ValueError(f"recipe {path}: the top level must be a mapping of fields")
    for item in overrides:
        if not FIELD_AND_VALUE.fullmatch(item):
            raise ValueError(f"--set {item}: needs the form field.name=value")
        try:
            settings = OmegaConf.merge(settings, OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"--set {item}: not readable as YAML ({str(error).splitlines()[0]})") from error
    try:
        content = cast(dict[Any, Any], OmegaConf.to_container(settings, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"recipe {path}: cannot be resolved ({str(error).splitlines()[0]})") from error
    return parse_recipe({str(key): value for key, value in content.items()})


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field spelled out."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
