"""Builds what a run trains and how its batches are made, from the recipe; and compiles it."""

from typing import TYPE_CHECKING

from pipeline.config import Recipe
from pipeline.distributed import process_group

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.batch import Collate
    from pipeline.models.language import LanguageTower
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.stage2_task import Stage2Task


def build_parts(recipe: Recipe, device: str, fresh: bool = True) -> tuple["Stage1Task | Stage2Task", "Collate"]:
    """The stage's task with its frozen towers on the device, and the collation that feeds it.

    A sharded language model is in host memory on rank 0, and has shapes alone on the others: the engine spreads it.
    A bridge that is not `fresh` gets its weights elsewhere, and not from `init_weights`.
    """
    from pipeline.data import prompted
    from pipeline.data.batch import collate_for_qformer
    from pipeline.data.pairs import Layout, in_sequences
    from pipeline.models import build
    from pipeline.models.interleaved import check_positions
    from pipeline.models.language import build_language
    from pipeline.models.lora import add_lora
    from pipeline.models.trial import try_language, try_vision
    from pipeline.models.vision import TrainedVision, VisionTower, build_vision
    from pipeline.training.identity import identities
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.stage2_task import Stage2Task
    from pipeline.weights.initial import initialise

    first = process_group.rank() == 0
    vision = build_vision(recipe.vision, device)
    try_vision(vision, recipe.vision)
    frozen = vision if isinstance(vision, VisionTower) else None
    trained = vision if isinstance(vision, TrainedVision) else None
    held: dict[str, nn.Module] = {} if frozen is None else {"vision": frozen}
    if recipe.language is None:
        tokenizer = build.build_tokenizer(recipe.qformer)
        bridge1 = build.build_stage1(recipe, vision.width, trained)
        task1 = Stage1Task(bridge1, frozen, recipe.objectives, tokenizer.bos_token_id, recipe.qformer.precision)
        if fresh:
            initialise(bridge1, recipe, lambda: identities(task1, recipe) if first else None)
        build.log_frozen_and_trainable(held, bridge1)
        return task1.to(device), collate_for_qformer(tokenizer, recipe.data.max_text_tokens)
    sharded = recipe.run.layout == "sharded"
    language = build_language(recipe.language, device if not sharded else "cpu" if first else "meta")
    if first or not sharded:
        try_language(language, recipe.language)
    lora = add_lora(language.model, recipe, device)
    bridge2 = build.build_stage2(recipe, vision.width, language, trained, lora)
    build.log_frozen_and_trainable(held | {"language": language.model}, bridge2)
    asks = recipe.data.sample == "question"
    task2 = Stage2Task(bridge2.to(device), frozen, language, recipe.qformer.precision, sharded, asks)
    if fresh:
        initialise(bridge2, recipe, lambda: identities(task2, recipe) if first else None)
    collate = _collate_for(language, recipe)
    if recipe.data.pairs_per_sequence == 1:
        return task2, collate
    check_positions(language, recipe)
    begin, seq2seq = prompted.num_special(language.tokenizer), language.kind == "seq2seq"
    layout = Layout(recipe.data.pairs_per_sequence, recipe.qformer.num_query_tokens, begin, seq2seq)
    return task2, in_sequences(collate, layout)


def _collate_for(language: "LanguageTower", recipe: Recipe) -> "Collate":
    """The collation of pairs for a language model, by its kind and prompt."""
    from pipeline.data import batch, prompted
    from pipeline.models.build import build_tokenizer

    assert recipe.language is not None
    tokenizer, length = language.tokenizer, recipe.data.max_text_tokens
    prompt, end = recipe.language.prompt, recipe.language.end_text
    if prompt:
        asked = {"none": "", "question": prompted.HOLE, "prompt": prompt}[recipe.qformer.question]
        reader = build_tokenizer(recipe.qformer) if asked else None
        questions = prompted.questions_for_qformer(reader, length, asked) if reader else None
        if language.kind == "seq2seq":
            return prompted.collate_prompted_seq2seq(tokenizer, length, prompt, questions)
        return prompted.collate_prompted_causal(tokenizer, length, end, prompt, questions)
    if language.kind == "seq2seq":
        return batch.collate_for_seq2seq(tokenizer, length)
    return batch.collate_for_causal(tokenizer, length, end)


def compile_parts(task: "Stage1Task | Stage2Task", recipe: Recipe, device: str, zero_stage: int) -> None:
    """Compile the towers' and the Q-Former's blocks, but none whose weights ZeRO-3 gathers by hooks."""
    import torch

    from pipeline.models.compiling import compile_blocks
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.task import vision_of

    gathered = zero_stage == 3
    language = task.towers.language.model if task.towers.language and recipe.run.layout == "replicated" else None
    if gathered and recipe.language and recipe.language.lora.rank:
        language = None
    vision = None if gathered and recipe.vision.trained else vision_of(task)
    compiled = compile_blocks(recipe.run, device, vision, None if gathered else task.bridge.qformer, language)
    if compiled and isinstance(task, Stage1Task):
        task.itg_loss_sums = torch.compile(task.itg_loss_sums, dynamic=True)
