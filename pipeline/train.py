"""`deepspeed --num_gpus N --module pipeline.train --recipe R.yaml`: train one stage; the same command resumes it."""

import argparse
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, one_line, start_log
from pipeline.config import Recipe, dump_recipe, for_ranks, load_recipe, with_absolute_places
from pipeline.distributed import process_group
from pipeline.training.preemption import EXIT_STOPPED, StopRequest

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.batch import Collate
    from pipeline.data.loader import DataSource
    from pipeline.models.language import LanguageTower
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.stage2_task import Stage2Task

log = logging.getLogger("pipeline.train")


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
    from pipeline.models.trial import try_language, try_vision
    from pipeline.models.vision import TrainedVision, VisionTower, build_vision
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.stage2_task import Stage2Task
    from pipeline.weights import native

    vision = build_vision(recipe.vision, device)
    try_vision(vision, recipe.vision)
    frozen = vision if isinstance(vision, VisionTower) else None
    trained = vision if isinstance(vision, TrainedVision) else None
    held: dict[str, nn.Module] = {} if frozen is None else {"vision": frozen}
    if recipe.language is None:
        tokenizer = build.build_tokenizer(recipe.qformer)
        bridge1 = build.build_stage1(recipe, vision.width, trained)
        if fresh:
            native.initialise(bridge1, recipe)
        task1 = Stage1Task(bridge1, frozen, recipe.objectives, tokenizer.bos_token_id, recipe.qformer.precision)
        build.log_frozen_and_trainable(held, bridge1)
        return task1.to(device), collate_for_qformer(tokenizer, recipe.data.max_text_tokens)
    sharded, first = recipe.run.layout == "sharded", process_group.rank() == 0
    language = build_language(recipe.language, device if not sharded else "cpu" if first else "meta")
    if first or not sharded:
        try_language(language, recipe.language)
    bridge2 = build.build_stage2(recipe, vision.width, language, trained)
    if fresh:
        native.initialise(bridge2, recipe)
    build.log_frozen_and_trainable(held | {"language": language.model}, bridge2)
    asks = recipe.data.sample == "question"
    task2 = Stage2Task(bridge2.to(device), frozen, language, recipe.qformer.precision, sharded, asks)
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


def train(recipe: Recipe, data: "DataSource", ds_config: dict[str, Any], stop: StopRequest) -> bool:
    """Build the parts, resume if the run folder holds a checkpoint, and fit. False when a signal stopped it."""
    import torch

    from pipeline.cost.flops import utilisation_of_one_sample_a_second
    from pipeline.data.loader import build_loader, named_worker_faults
    from pipeline.distributed import collectives
    from pipeline.distributed.first_rank import from_first_rank
    from pipeline.models.compiling import compile_blocks
    from pipeline.models.precision import add_in_fp32, choose_attention_kernel
    from pipeline.training import checkpoint, engine_state, loop, run_folder
    from pipeline.training.engine import build_engine
    from pipeline.training.identity import identities
    from pipeline.training.profiling import Profile
    from pipeline.training.progress import Progress
    from pipeline.training.saving import Saver
    from pipeline.training.task import vision_of
    from pipeline.training.telemetry import Telemetry
    from pipeline.training.validation import Validation
    from pipeline.training.watchdog import Watchdog
    from pipeline.weights import native

    rank, world_size = process_group.rank(), process_group.world_size()
    torch.manual_seed(recipe.seed)  # the same fresh bridge on every rank
    device = process_group.device_name()
    choose_attention_kernel(device)
    add_in_fp32()
    found = run_folder.newest_checkpoint(recipe)
    with collectives.together():
        task, collate = build_parts(recipe, device, fresh=found is None)
        validation = Validation(recipe, collate) if recipe.validation else None
    towers = from_first_rank(identities(task, recipe) if rank == 0 else {})
    state, moments = run_folder.initial_state(recipe, data.digest(), towers), None
    if found:
        state = checkpoint.read_state(found, state, recipe.run.resume_despite)
        moments = checkpoint.read_optimizer(found, state)
        native.load_into(task.bridge, native.read_weights(found)[1], found)
    run_folder.describe(recipe, ds_config)
    log.info("%s %s", *("resuming from", found) if found else ("starting from", recipe.init_weights or "scratch"))
    if not found and recipe.stage == 2 and not recipe.init_weights:
        log.warning("init_weights is empty: this stage 2 does not begin with a stage-1 run, which its answers need")
    gathered = ds_config["zero_optimization"]["stage"] == 3  # whose hooks stand between a module and its weights
    language = task.towers.language.model if task.towers.language and recipe.run.layout == "replicated" else None
    vision = None if gathered and recipe.vision.trained else vision_of(task)
    compile_blocks(recipe.run, device, vision, None if gathered else task.bridge.qformer, language)
    engine = build_engine(task, recipe, ds_config)
    engine_state.restore(engine, moments, state.step - state.skipped)
    del moments
    loader = build_loader(recipe, data, collate, rank, world_size, state.step)
    cuda_name = torch.cuda.get_device_name(device) if rank == 0 and device != "cpu" else None
    utilisation = utilisation_of_one_sample_a_second(recipe, world_size, cuda_name)
    with (
        Telemetry(recipe.run.output, state.step, recipe.run.steps, utilisation) as telemetry,
        Watchdog(recipe.run.output, recipe.run.hang_deadline_s) as watchdog,
        named_worker_faults(recipe.data.num_workers),
        Saver(engine, recipe) as saver,
        Profile(recipe.run.output, recipe.run.profile_steps, device) as profile,
    ):
        parts = loop.RunParts(recipe, engine, loader, validation, telemetry, saver, watchdog, profile, stop)
        return loop.fit(parts, Progress(recipe, state, task.loss_scale))


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m pipeline.train", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="the recipe, a YAML file; see pipeline/recipes/")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="change recipe fields; see pipeline/RECIPE.md",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


def _is_printed_here(error: Exception, rank: int) -> bool:
    """Rank 0 prints an error that every rank has; a rank prints one of its own data, files or GPU itself."""
    from pipeline.data.loader import WorkerError
    from pipeline.data.stream import UnreadableShardError
    from pipeline.distributed.collectives import OtherRankFaultError, RankFaultError
    from pipeline.distributed.device import DeviceError
    from pipeline.distributed.process_group import LostRankError

    own = isinstance(error, UnreadableShardError | WorkerError | RankFaultError | DeviceError | LostRankError)
    return own or (rank == 0 and not isinstance(error, OtherRankFaultError))


def _run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """The exit code of a run that no fault ended."""
    rank, world_size = process_group.rank(), process_group.world_size()
    recipe = for_ranks(with_absolute_places(load_recipe(arguments.recipe, arguments.set)), world_size)
    from torch import OutOfMemoryError

    from pipeline.data.held_out import check_held_out
    from pipeline.data.loader import in_steps, open_source
    from pipeline.distributed import collectives
    from pipeline.training import run_folder
    from pipeline.training.engine import resolve_ds_config
    from pipeline.training.watchdog import collective_timeout_s

    deadline_s = collective_timeout_s(recipe.run.hang_deadline_s)
    process_group.initialise(even_alone=True, timeout_s=deadline_s, stopped=lambda: stop.requested)
    with collectives.together():
        data = open_source(recipe, world_size)
        check_held_out(recipe, data)
        recipe = in_steps(recipe, data)
        ds_config = resolve_ds_config(recipe, world_size)
        complete = run_folder.is_complete(recipe, data.digest())
    if rank == 0:
        print(dump_recipe(recipe))
    if not collectives.any_rank(not complete):
        if rank == 0:
            print(f"already complete: {recipe.run.output}")
        return 0
    try:
        with run_folder.opened(recipe):
            finished = train(recipe, data, ds_config, stop)
    except OutOfMemoryError as error:
        raise collectives.RankFaultError(
            f"batch.micro_size {recipe.batch.micro_size}: the GPU of rank {rank} has no memory left ({one_line(error)})"
            "; lower batch.micro_size, see pipeline.plan"
        ) from error
    if rank == 0:
        print(recipe.run.output)
    return 0 if finished else EXIT_STOPPED


def main() -> int:
    arguments, stop = _arguments(), StopRequest()  # so a signal counts while loading, too
    rank = process_group.rank()
    level = logging.INFO if rank == 0 else logging.WARNING
    start_log(level)
    try:
        with process_group.naming_lost_ranks():
            code = _run(arguments, stop)
    except process_group.StoppedWhileJoiningError:
        print("stopped by a signal before all ranks were there; run the same command again", file=sys.stderr)
        code = EXIT_STOPPED
    except (ValueError, OSError) as error:
        if _is_printed_here(error, rank):
            print(f"error: {one_line(error)}", file=sys.stderr)
        from pipeline.data.loader import WorkerError

        return process_group.leave_after_fault(1, at_once=isinstance(error, WorkerError))
    except Exception:  # a fault of this program or of the machine: the other ranks must not wait for this one
        traceback.print_exc()
        return process_group.leave_after_fault(1)
    process_group.shut_down()
    return code


if __name__ == "__main__":
    sys.exit(main())
