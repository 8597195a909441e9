"""`deepspeed --num_gpus N --module pipeline.train --recipe R.yaml`: train one stage; the same command resumes it."""

import argparse
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, ended_if_deaf, no_memory, one_line, start_log
from pipeline.config import Recipe, dump_recipe, for_ranks, load_recipe, with_absolute_places
from pipeline.distributed import process_group
from pipeline.distributed.launcher import end_with_launcher
from pipeline.training.preemption import DEAF_S, EXIT_STOPPED, StopRequest

if TYPE_CHECKING:
    from pipeline.data.loader import DataSource

log = logging.getLogger("pipeline.train")


def train(recipe: Recipe, data: "DataSource", ds_config: dict[str, Any], stop: StopRequest) -> bool:
    """Build the parts, resume if the run folder holds a checkpoint, and fit. False when a signal stopped it."""
    import torch

    from pipeline.cost.flops import utilisation_of_one_sample_a_second
    from pipeline.data.loader import build_loader, named_worker_faults
    from pipeline.distributed import collectives
    from pipeline.distributed.first_rank import from_first_rank
    from pipeline.models.precision import add_in_fp32, choose_attention_kernel
    from pipeline.training import checkpoint, engine_state, loop, run_folder
    from pipeline.training.engine import build_engine
    from pipeline.training.identity import identities
    from pipeline.training.parts import build_parts, compile_parts
    from pipeline.training.profiling import Profile
    from pipeline.training.progress import Progress
    from pipeline.training.saving import Saver
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
        task, collate = build_parts(recipe, device, found is None)
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
    compile_parts(task, recipe, device, ds_config["zero_optimization"]["stage"])
    engine = build_engine(task, recipe, ds_config)
    engine_state.restore(engine, moments, state.step - state.skipped)
    del moments
    loader = build_loader(recipe, data, collate, rank, world_size, state.step)
    cuda_name = torch.cuda.get_device_name(device) if rank == 0 and device != "cpu" else None
    utilisation = utilisation_of_one_sample_a_second(recipe, world_size, cuda_name)
    with (
        Telemetry(recipe.run.output, state.step, recipe.run.steps, utilisation) as telemetry,
        Watchdog(recipe.run.output, recipe.run.hang_deadline_s, stop) as watchdog,
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
    end_with_launcher()
    try:
        with ended_if_deaf(stop.heard, DEAF_S), process_group.naming_lost_ranks():
            code = _run(arguments, stop)
    except process_group.StoppedWhileJoiningError:
        print(
            "stopped by a signal before all ranks were there; run the same command again. A rank that the launcher "
            "names with return code -9 was killed, most likely because memory ran out: start fewer or give it more",
            file=sys.stderr,
        )
        code = EXIT_STOPPED
    except (ValueError, OSError) as error:
        if _is_printed_here(error, rank):
            print(f"error: {one_line(error)}", file=sys.stderr)
        from pipeline.data.loader import WorkerError

        return process_group.leave_after_fault(1, at_once=isinstance(error, WorkerError))
    except Exception as error:  # of this program or of the machine: the other ranks must not wait for this one
        if line := no_memory(error):
            print(f"error: {line}", file=sys.stderr)
        else:
            traceback.print_exc()
        return process_group.leave_after_fault(1)
    process_group.shut_down()
    return code


if __name__ == "__main__":
    sys.exit(main())
