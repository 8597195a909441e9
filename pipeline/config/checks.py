"""What must hold between the sections of a recipe, by topic. Each check raises ValueError in one line."""

from typing import TYPE_CHECKING, Any

QUANTISED = ("int8", "int4")

if TYPE_CHECKING:
    from pipeline.config.sections import Recipe


def check_texts(recipe: "Recipe") -> None:
    """Questions need a language model that answers, and a place in its prompt; weights need a loss of each sample."""
    prompt, sample = recipe.language.prompt if recipe.language else "", recipe.data.sample
    asks = sample == "question"
    if asks and recipe.stage == 1:
        raise ValueError("data.sample 'question': stage 1 has no answers to generate; set image or caption")
    if recipe.data.loss_weights and recipe.stage == 1:
        raise ValueError("data.loss_weights: stage 1 compares samples, so none has a loss of its own; remove it")
    if asks and prompt.count("{}") != 1:
        raise ValueError(
            f"language.prompt {prompt!r}: needs one {{}} for the question, as data.sample is 'question'; for example "
            "'Question: {} Answer:'"
        )
    if "{}" in prompt and not asks:
        raise ValueError(
            f"language.prompt {prompt!r}: has a {{}} for a question, and data.sample is {sample!r}; set question, or "
            "remove it"
        )
    if prompt != prompt.strip():
        raise ValueError(
            f"language.prompt {prompt!r}: begins or ends with white space; remove it, one space is put after the prompt"
        )
    if recipe.qformer.question != "none" and not asks:
        raise ValueError(
            f"qformer.question {recipe.qformer.question!r}: data.sample is {sample!r}, which has no question; set "
            "data.sample=question"
        )
    if recipe.init_text_weights and (recipe.qformer.question == "none" or not recipe.init_weights):
        raise ValueError(
            f"init_text_weights {recipe.init_text_weights}: completes init_weights for a Q-Former that reads "
            "questions; set init_weights and qformer.question, or remove it"
        )


def check_trained_precision(recipe: "Recipe") -> None:
    """Training sends a gradient through the language model, and its exactness matters there."""
    if recipe.language and recipe.language.precision in QUANTISED:
        raise ValueError(
            f"language.precision {recipe.language.precision!r}: is for inference alone; train with bf16, or with fp16 "
            "as OPT's recipes do"
        )


def check_lora(recipe: "Recipe") -> None:
    """LoRA's matrices stand beside whole layers, on every rank."""
    lora = recipe.language.lora if recipe.language else None
    if lora and lora.rank and recipe.run.layout == "sharded":
        raise ValueError(
            f"run.layout 'sharded': does not go with language.lora.rank {lora.rank}; set run.layout=replicated, or "
            "language.lora.rank=0"
        )


def check_pairs(recipe: "Recipe") -> None:
    """Sequences of several pairs are a language model's, and have one text for each picture."""
    pairs, size = recipe.data.pairs_per_sequence, recipe.batch.micro_size
    if pairs > 1 and recipe.stage == 1:
        raise ValueError(
            f"data.pairs_per_sequence {pairs}: stage 1 has no language model that reads several pictures; set 1"
        )
    if size % pairs:
        raise ValueError(
            f"data.pairs_per_sequence {pairs}: does not divide batch.micro_size {size}; change one of them"
        )
    if pairs > 1 and recipe.data.answers == "all":
        raise ValueError(
            f"data.pairs_per_sequence {pairs}: a sequence has one answer to each question, and data.answers is 'all'; "
            "set data.answers=one"
        )
    if pairs > 1 and recipe.qformer.question != "none":
        raise ValueError(
            f"data.pairs_per_sequence {pairs}: this Q-Former reads a question, and then a prompt has one picture only; "
            "set 1, or qformer.question=none"
        )


def check_optimizer(recipe: "Recipe") -> None:
    """The learning rate rises to its peak and falls from there."""
    rates = recipe.optimizer
    for name in ("minimum_learning_rate", "warmup_start"):
        value = getattr(rates, name) or 0.0
        if value > rates.peak_learning_rate:
            raise ValueError(
                f"optimizer.{name} {value:g}: is above optimizer.peak_learning_rate {rates.peak_learning_rate:g}; set "
                "it to that at most"
            )


def check_objectives(recipe: "Recipe") -> None:
    """Stage 2 has one loss, without weights."""
    if recipe.stage == 2 and recipe.objectives != type(recipe.objectives)():
        raise ValueError("objectives: are stage 1's, and stage is 2; remove them")


def check_encoder(recipe: "Recipe") -> None:
    """A frozen image encoder has no learning rates."""
    if recipe.optimizer.layer_decay != 1 and not recipe.vision.trained:
        raise ValueError(
            f"optimizer.layer_decay {recipe.optimizer.layer_decay}: is for a trained image encoder; set "
            "vision.trained=true, or remove it"
        )


def check_epochs(recipe: "Recipe") -> None:
    """What happens epoch by epoch needs a length in epochs, and that needs a manifest."""
    epochs = recipe.run.epochs
    if epochs and recipe.data.urls:
        raise ValueError(f"run.epochs {epochs}: data.urls do not say how long an epoch is; set run.steps")
    if not epochs and recipe.optimizer.schedule == "staircase":
        raise ValueError("optimizer.schedule 'staircase': falls from epoch to epoch; set run.epochs, not run.steps")
    if not epochs and recipe.validation and not recipe.validation.every_steps:
        raise ValueError("validation.every_steps 0: a run of so many steps has no epochs; set run.epochs")


def rounded_language(recipe: dict[str, Any] | None) -> str:
    """int8 or int4, where a recipe's content has its language model in it; else empty."""
    precision = str(((recipe or {}).get("language") or {}).get("precision"))
    return precision if precision in QUANTISED else ""
