"""`deepspeed --num_gpus N --module pipeline.train --recipe R.yaml`: train one stage. Recipe -> parts -> fit."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, one_line
from pipeline.config import Recipe, dump_recipe, for_ranks, load_recipe
from pipeline.distributed import process_group

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.batch import Collate
    from pipeline.data.loader import DataSource

log = logging.getLogger("pipeline.train")
# Fields that change where and how often a run writes or how fast it reads, never what it computes.
FIELDS_FREE_TO_CHANGE = {
    "run": {"output", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints"},
    "data": {"manifest", "num_workers"},  # of the manifest its content counts, not its place
}


def build_parts(recipe: Recipe, device: str) -> tuple["nn.Module", "Collate"]:
    """The stage's task with its frozen towers on the device, and the collation that feeds it."""
    from pipeline.data import batch
    from pipeline.models import build
    from pipeline.models.language import build_language
    from pipeline.models.trial import try_language, try_vision
    from pipeline.models.vision import build_vision
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.stage2_task import Stage2Task
    from pipeline.weights import native

    vision, length = build_vision(recipe.vision).to(device), recipe.data.max_text_tokens
    try_vision(vision, recipe.vision)
    if recipe.language is None:
        tokenizer = build.build_tokenizer(recipe.qformer)
        bridge1 = build.build_stage1(recipe, vision.width)
        native.initialise(bridge1, recipe)
        task1 = Stage1Task(bridge1, vision, recipe.objectives, tokenizer.bos_token_id, recipe.qformer.precision)
        build.log_frozen_and_trainable({"vision": vision}, bridge1)
        return task1.to(device), batch.collate_for_qformer(tokenizer, length)
    language = build_language(recipe.language, device)
    try_language(language, recipe.language)
    bridge2 = build.build_stage2(recipe, vision.width, language)
    native.initialise(bridge2, recipe)
    build.log_frozen_and_trainable({"vision": vision, "language": language.model}, bridge2)
    tokenizer, task2 = language.tokenizer, Stage2Task(bridge2, vision, language, recipe.qformer.precision).to(device)
    if language.kind == "seq2seq":
        return task2, batch.collate_for_seq2seq(tokenizer, length)
    return task2, batch.collate_for_causal(tokenizer, length, recipe.language.end_text)


def _initial_state(recipe: Recipe, manifest: "DataSource") -> Any:
    from pipeline.training.checkpoint import State

    # pydantic's type for nested exclusion is invariant.
    settings = recipe.model_dump(mode="json", exclude=FIELDS_FREE_TO_CHANGE)  # type: ignore[arg-type]
    return State(0, 0, recipe.seed, process_group.world_size(), manifest.digest(), settings)


def _is_complete(recipe: Recipe, manifest: "DataSource") -> bool:
    """Whether the run folder holds the last step. Raises ValueError when it is another run's, before it is touched."""
    from pipeline.training import checkpoint

    found = checkpoint.complete_checkpoints(recipe.run.output)
    return bool(found) and checkpoint.read_state(found[-1], _initial_state(recipe, manifest)).step == recipe.run.steps


def _open_run_folder(recipe: Recipe, ds_config: dict[str, Any]) -> None:
    """Rank 0 leaves recipe, resolved DeepSpeed configuration and environment, and removes half-written checkpoints."""
    from importlib.metadata import version

    from pipeline.training import checkpoint

    folder = recipe.run.output
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.prune_incomplete(folder)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    (folder / "ds_config.json").write_text(json.dumps(ds_config, indent=2) + "\n")
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers", "timm")}
    environment = {"world_size": process_group.world_size(), "python": sys.version.split()[0], "packages": packages}
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")


def train(recipe: Recipe, manifest: "DataSource", ds_config: dict[str, Any]) -> bool:
    """Build the parts, resume if this run folder holds a checkpoint, and fit. False when a signal stopped it."""
    import torch

    from pipeline.data.loader import build_loader
    from pipeline.models.precision import choose_attention_kernel
    from pipeline.training import checkpoint, loop
    from pipeline.training.engine import build_engine
    from pipeline.training.telemetry import Telemetry

    rank, world_size = process_group.rank(), process_group.world_size()
    state = _initial_state(recipe, manifest)
    torch.manual_seed(recipe.seed)  # the same fresh bridge on every rank
    device = process_group.device_name()
    choose_attention_kernel(device)
    task, collate = build_parts(recipe, device)
    torch.manual_seed(recipe.seed * world_size + rank)  # dropout differs between ranks
    engine = build_engine(task, recipe, ds_config)
    found = checkpoint.complete_checkpoints(recipe.run.output)
    if found:
        state = checkpoint.load(engine, found[-1], state)
        log.info("resuming from %s", found[-1])
    else:
        log.info("starting from %s", recipe.init_weights or "scratch")
    loader = build_loader(recipe, manifest, collate, rank, world_size, state.step)
    with Telemetry(recipe.run.output, state.step, recipe.run.steps) as telemetry:
        return loop.fit(engine, loader, recipe, state, telemetry)


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="pipeline.train", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML recipe; the shipped ones: pipeline/recipes/")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="edit the recipe")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


def _is_of_this_rank_alone(error: Exception) -> bool:
    """Every rank meets a fault of the recipe or the weights, and rank 0 says it; a fault of its samples a rank says."""
    from pipeline.data.stream import UnreadableShardError

    return isinstance(error, UnreadableShardError)


def main() -> int:
    arguments, rank = _arguments(), process_group.rank()
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = for_ranks(load_recipe(arguments.recipe, arguments.set), process_group.world_size())
        from pipeline.data.loader import open_source

        manifest = open_source(recipe, process_group.world_size())
        from pipeline.distributed import collectives
        from pipeline.training.engine import resolve_ds_config

        ds_config = resolve_ds_config(recipe, process_group.world_size())
        if rank == 0:
            print(dump_recipe(recipe))
        if _is_complete(recipe, manifest):
            if rank == 0:
                print(f"already complete: {recipe.run.output}")
            return 0
        process_group.initialise(even_alone=True)
        if rank == 0:
            _open_run_folder(recipe, ds_config)
        collectives.barrier()
        finished = train(recipe, manifest, ds_config)
    except (ValueError, OSError) as error:
        if rank == 0 or _is_of_this_rank_alone(error):
            print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        process_group.shut_down()
    if rank == 0:
        print(recipe.run.output)
    from pipeline.training.preemption import EXIT_STOPPED

    return 0 if finished else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
