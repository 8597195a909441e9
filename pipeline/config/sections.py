"""The recipe's sections: the typed fields of one run of one stage, their defaults (the paper's values) and checks.

The text under a field is its description: RECIPE.md is made of it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, model_validator

from pipeline.config.checks import (
    check_encoder,
    check_epochs,
    check_lora,
    check_objectives,
    check_optimizer,
    check_pairs,
    check_texts,
)
from pipeline.config.data_section import Data, Validation
from pipeline.config.model_sections import Language, QFormer, Vision
from pipeline.config.section import NotNegative, OneOrMore, Positive, Section


class Objectives(Section):
    """The three losses of stage 1 (paper, section 3.2)."""

    itc_weight: float = 1.0
    """factor on the image-text contrastive loss"""
    itm_weight: float = 1.0
    """factor on the image-text matching loss"""
    itg_weight: float = 1.0
    """factor on the image-grounded text generation loss; 0: it is not computed"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """label smoothing of ITC and ITG"""
    negatives: Literal["softmax", "softmax_plus_epsilon"] = "softmax"
    """how ITM draws hard negatives; `softmax_plus_epsilon` is the older rule of the public weights"""


class Batch(Section):
    """The batch: global_size = micro_size x accumulation x number of ranks. This is checked before a run."""

    global_size: Positive
    """samples of one optimizer step, over all ranks"""
    micro_size: Positive
    """samples that a rank computes at a time"""
    accumulation: Positive | None = None
    """micro batches of a rank in one step; if null, stage 2 takes what the number of ranks needs, stage 1 takes 1"""

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


Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """AdamW, with linear warmup and a decay to a minimum (paper, section 4.1)."""

    peak_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """learning rate after the warmup"""
    minimum_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    """learning rate at the last step"""
    schedule: Literal["cosine", "staircase"] = "cosine"
    """how the learning rate falls after the warmup: `cosine` at every step; `staircase` at the begin of every epoch, as
    LAVIS does it, and not quite to the minimum; it needs `run.epochs`"""
    warmup_steps: NotNegative = 2000
    """steps in which the learning rate rises; under `staircase` the warmup ends with the first epoch at the latest"""
    warmup_start: Annotated[float, Field(ge=0)] | None = None
    """learning rate of the first warmup step (LAVIS: 1e-8); null: the peak over `warmup_steps`"""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's two decay rates"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """decay of weights with two or more dimensions; biases and norms have none"""
    max_gradient_norm: Annotated[float, Field(ge=0)] = 1.0
    """a larger gradient is scaled down to this norm; 0 switches it off"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """of a trained image encoder with n blocks: the learning rate of block j, counted from 0, is multiplied by this
    number to the power of n - j; before the blocks, n + 1"""


class Run(Section):
    """How long a run takes, where it writes, and how often it logs and saves. Set either `steps` or `epochs`."""

    output: Path
    """the run folder"""
    steps: NotNegative = 0
    """optimizer steps of the whole run; 0: `epochs` decides"""
    epochs: NotNegative = 0
    """passes over the manifest's samples, each without its last partial batch; 0: `steps` decides"""
    zero: Path = Path("ds_configs/zero1.json")
    """the ZeRO policy: a file of `ds_configs/`"""
    gradient_transport: Literal["fp32", "bf16"] = "fp32"
    """number format in which ranks send gradients; `bf16` halves these bytes and rounds them"""
    compile: Literal["auto", "on", "off"] = "auto"
    """fuse the small operations of the towers' and the Q-Former's blocks with torch.compile; `auto`: on GPUs"""
    layout: Literal["replicated", "sharded"] = "replicated"
    """`replicated`: each rank holds the whole language model; `sharded`: the ranks share it, under ZeRO-3"""
    log_every_steps: Positive = 50
    """steps between two lines of metrics.jsonl"""
    checkpoint_every_steps: NotNegative = 1000
    """steps between two checkpoints; 0: at the end of every epoch, with `epochs`"""
    keep_checkpoints: Positive = 2
    """how many of the last checkpoints stay"""
    keep_every_steps: Positive | None = None
    """checkpoints of every N-th step stay as well; null: none"""
    resume_despite: OneOrMore = ()
    """what may differ from the run that saved the checkpoint: field names, `manifest`, `towers`"""
    hang_deadline_s: Annotated[float, Field(ge=1, le=1_000_000)] = 1800.0
    """seconds that a step may take; after them the job ends, and every rank's stacks are in RUN/stacks/"""
    profile_steps: NotNegative = 0
    """steps of each start that are profiled, after its first five; RUN/profile/ has each rank's trace and GPU memory"""

    @property
    def steps_per_epoch(self) -> int:
        """Of a run whose length is in epochs, once its steps are known."""
        return self.steps // self.epochs

    @model_validator(mode="after")
    def _length_is_in_steps_or_in_epochs(self) -> "Run":
        if (self.steps == 0) == (self.epochs == 0):
            raise ValueError("needs exactly one of steps and epochs; set one, and the other to 0")
        if not (self.epochs or self.checkpoint_every_steps):
            raise ValueError(
                "checkpoint_every_steps 0: a run of so many steps has no epochs; set epochs in their place"
            )
        return self


class Faults(Section):
    """What happens after a loss spike or a loss that is not finite, and when a checkpoint cannot be written."""

    spike_factor: Annotated[float, Field(gt=1)] | None = None
    """skip a step whose loss exceeds this factor times the usual loss (median of the last logged); null: skip none"""
    stop_after: Positive = 10
    """number of skipped steps in a row that ends the run, without saving"""
    save_failure: Literal["stop", "continue"] = "stop"
    """what the run does when a checkpoint cannot be written, as on a full disk"""


class Recipe(Section):
    """One run of one stage."""

    stage: Literal[1, 2]
    """1 trains the Q-Former with the image encoder alone, 2 with the language model"""
    seed: int = 42
    """decides the order of samples, crops, captions, dropout and fresh weights"""
    init_weights: Path | None = None
    """weights to start from: a run folder, a checkpoint or a converted folder; stage 2 starts from stage 1's"""
    init_text_weights: Path | None = None
    """stage-1 weights, whose text path `init_weights` of stage 2 lacks: for a Q-Former that reads questions"""
    init_from_other_towers: bool = False
    """take `init_weights` although they were trained with other towers"""
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
    _references: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _stage_1_has_no_language_model(cls, content: Any) -> Any:
        """Before the section's own fields: with one edit of it, the others would be told as missing."""
        if isinstance(content, dict) and content.get("stage") == 1 and content.get("language") is not None:
            raise ValueError(
                "language: stage 1 has no language model, nor have its weights; remove the section, or its --set"
            )
        return content

    @model_validator(mode="after")
    def _stage_has_its_parts(self) -> "Recipe":
        if self.stage == 2 and self.language is None:
            raise ValueError("language: is missing, and stage 2 needs a language model; add the section")
        if self.stage == 1 and self.run.layout == "sharded":
            raise ValueError("run.layout 'sharded': stage 1 has no language model to share; remove run.layout")
        pairs_of_a_pass = self.batch.global_size // (self.batch.accumulation or 1)
        if self.stage == 1 and self.objectives.itm_weight and pairs_of_a_pass < 2:
            raise ValueError(
                f"batch: {pairs_of_a_pass} pair a pass, and image-text matching draws negatives among the pairs of a "
                "pass; set batch.global_size and batch.accumulation for two pairs or more"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Recipe":
        check_encoder(self)
        check_lora(self)
        check_optimizer(self)
        check_objectives(self)
        check_texts(self)
        check_pairs(self)
        check_epochs(self)
        return self

    @property
    def references(self) -> dict[str, str]:
        """Of places that were given by a variable: the text, as `${oc.env:NAME}/towers`."""
        return self._references

    def referring(self, references: dict[str, str]) -> "Recipe":
        """The recipe with the references that its files keep."""
        copy = self.model_copy()
        copy._references = references
        return copy

    def in_steps(self, samples: int) -> "Recipe":
        """The recipe with the steps that `run.epochs` is, where an epoch has so many samples."""
        run = self.run
        if not run.epochs:
            return self
        steps = run.epochs * (samples // self.batch.global_size)
        return self.model_copy(update={"run": run.model_copy(update={"steps": steps})})

    def as_written(self) -> "Recipe":
        """The recipe without the steps that follow from its epochs: what is kept in files, and can be read again."""
        if not self.run.epochs:
            return self
        return self.model_copy(update={"run": self.run.model_copy(update={"steps": 0})})

    @model_validator(mode="after")
    def _what_may_differ_has_a_name(self) -> "Recipe":
        for name in self.run.resume_despite:
            known = name.split(".")[0] in ("manifest", "towers") or name == "batch.pass_size"  # what states have beside
            if not known and not _is_field(name.split("."), Recipe):
                raise ValueError(
                    f"run.resume_despite {name!r}: is not a field; name a recipe field, `manifest` or `towers`"
                )
        return self


def _is_field(path: list[str], section: type[Section]) -> bool:
    """Whether a dotted name leads to a field of a section, or into one that has no fields of its own."""
    field = section.model_fields.get(path[0])
    if field is None or len(path) == 1:
        return field is not None
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    sections = [kind for kind in kinds if issubclass(kind, Section)]
    return _is_field(path[1:], sections[0]) if sections else True
