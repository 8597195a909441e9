"""What a recipe's models are: the image encoder, the Q-Former and the language model.

The text under a field is its description: RECIPE.md is made of it.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import NotNegative, OneOrMore, Place, Positive, Section

VisionPrecision = Literal["fp32", "bf16", "fp16", "fp8"]
LanguagePrecision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Vision(Section):
    """The image encoder, which is frozen unless `trained`."""

    name: Place
    """a timm ViT (its name, `hf-hub:OWNER/NAME` or `local-dir:FOLDER`) or a transformers vision model
    (`transformers:NAME` or `transformers:FOLDER`)"""
    precision: VisionPrecision = "fp16"
    """number format of its weights; `fp8` multiplies in fp8 within the blocks, for GPUs that can (not A100), and wants
    `run.compile`"""
    image_size_px: Positive = 224
    """side of the square picture, in pixels"""
    trained: bool = False
    """train the encoder with the Q-Former, from its own weights on (fine-tuning): its weights are then fp32, and
    `precision` is that of its computation, bf16 or fp32"""
    activation_checkpointing: bool = False
    """of a trained encoder: compute each block again in the backward pass: less memory, a fifth more work"""
    dropout: Probability = 0.0
    """of a trained encoder: dropout probability after attention and MLP"""
    drop_path: Probability = 0.0
    """of a trained encoder: probability that the last block is left out for a sample; it rises from 0 at the first"""

    @model_validator(mode="after")
    def _training_has_a_precision(self) -> "Vision":
        if self.trained and self.precision not in ("bf16", "fp32"):
            raise ValueError(
                f"precision {self.precision!r}: a trained image encoder computes in bf16 or fp32; set bf16"
            )
        for field in ("activation_checkpointing", "dropout", "drop_path"):
            if getattr(self, field) and not self.trained:
                raise ValueError(f"{field} {getattr(self, field)}: is for a trained image encoder; set trained=true")
        return self


class QFormer(Section):
    """The Querying Transformer, which is trained."""

    bert: Place = "bert-base-uncased"
    """the BERT that gives its size, its first weights and its tokenizer: a hub id or a folder"""
    num_query_tokens: Positive = 32
    """learned queries; each becomes a soft prompt of the language model"""
    cross_attention_every: Positive = 2
    """every N-th layer, the first one included, reads the picture"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """dropout probability in training"""
    projection_width: Positive = 256
    """width of the image and text features that ITC compares"""
    precision: Literal["fp32", "bf16"] = "bf16"
    """number format of its computation; its weights stay fp32"""
    question: Literal["none", "question", "prompt"] = "none"
    """what it reads beside the picture, where `data.sample` is question: nothing, the question, or `language.prompt`
    with the question in it"""


class Lora(Section):
    """LoRA on the language model: small trained matrices beside its frozen ones, W x + (alpha / rank) B A x."""

    rank: NotNegative = 0
    """rank of the matrices; 0: none, the language model stays as it is"""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """factor on what they add, divided by the rank"""
    dropout: Probability = 0.05
    """dropout probability before A, in training"""
    targets: OneOrMore | None = None
    """ends of the names of the linear layers that get them, as [q_proj, v_proj]; null: peft's choice for the model's
    family, queries and values for OPT and T5"""


class Language(Section):
    """The frozen language model of stage 2: any causal or seq2seq language model of transformers."""

    name: Place
    """a hub id or a folder"""
    precision: LanguagePrecision
    """number format of its weights; T5 models overflow in fp16; `int8` and `int4` are for inference alone, and need the
    package bitsandbytes"""
    end_text: str = "\n"
    """the end of a caption, for a causal model"""
    prompt: str = ""
    """text before each caption, which is read and not scored; `{}` stands for the question where `data.sample` is
    question; a seq2seq model has it in its encoder, and decodes the whole caption"""
    config: dict[str, bool | int | float | str] = {}  # noqa: RUF012  (pydantic copies it)
    """values that replace fields of the model's own config.json, by name"""
    activation_checkpointing: bool = False
    """compute each layer again in the backward pass: less memory, a third more work"""
    lora: Lora = Lora()
