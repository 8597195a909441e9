"""Weights between this project, LAVIS and transformers: every tensor accounted for by name, what is left out listed.

    python -m pipeline.convert SRC DST --from FORMAT --to FORMAT [--recipe R.yaml]

FORMAT is native (a run folder, a checkpoint folder or its trainable.safetensors), lavis (a .pth file) or huggingface (a
folder of save_pretrained()). The latter two do not say which towers they belong to: --recipe does.
"""

import json
import shutil
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, one_line

if TYPE_CHECKING:
    from torch import nn

    from pipeline.config import Recipe

FORMATS = ("native", "lavis", "huggingface")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="pipeline.convert", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("destination", type=Path, metavar="DST", help="a folder; for lavis a file. Must not exist")
    parser.add_argument("--from", dest="read_as", choices=FORMATS, required=True)
    parser.add_argument("--to", dest="write_as", choices=FORMATS, required=True)
    parser.add_argument("--recipe", type=Path, help="names towers and sizes; needed unless SRC is native")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="edits of the recipe")
    options = parser.parse_args(arguments)
    if (options.read_as == "native") == (options.recipe is not None):
        wrong = "leave it out: native weights hold theirs" if options.recipe else f"{options.read_as} weights need one"
        parser.error(f"--recipe {options.recipe}: {wrong}")
    for path in (options.destination, conversion_note(options.destination)):
        if path.exists():
            parser.error(f"DST {path}: is there already; name another, or remove it")
    print(json.dumps({name: str(value) for name, value in vars(options).items()}))
    try:
        convert(options.source, options.destination, options.read_as, options.write_as, options.recipe, options.set)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(options.destination)
    return 0


def convert(
    source: Path, destination: Path, read_as: str, write_as: str, recipe: Path | None, edits: Sequence[str]
) -> None:
    """Read, check each name and shape against the model that the recipe describes, write. Raises ValueError.

    The result appears when it is whole.
    """
    bridge, settings, step, notes = _read(source, read_as, recipe, edits)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if write_as == "lavis":
        from pipeline.weights.lavis import to_lavis, write_file

        write_file(to_lavis(bridge.state_dict(), language_kind(settings)), destination)
    elif write_as == "native":
        from pipeline.weights.native import save_weights

        partial.mkdir()
        save_weights(bridge, settings, step, partial, converted_from=f"{read_as}: {source}", notes="\n".join(notes))
    else:
        try:
            notes += _write_huggingface(bridge, settings, partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if write_as != "native":
        content = {"source": str(source), "from": read_as, "step": step, "notes": notes}
        content["recipe"] = settings.model_dump(mode="json")
        path = partial / "conversion.json" if partial.is_dir() else conversion_note(destination)
        path.write_text(json.dumps(content, indent=1) + "\n")
    if partial.is_dir():
        partial.rename(destination)
    for note in notes:
        print(note, file=sys.stderr)


def conversion_note(destination: Path) -> Path:
    """Where the notes on a single converted file go."""
    return destination.with_name(f"{destination.name}.conversion.json")


def _read(
    source: Path, read_as: str, recipe: Path | None, edits: Sequence[str]
) -> tuple["nn.Module", "Recipe", int, list[str]]:
    """The bridge with its weights, its recipe, its step (0: unknown), and what had no place or was not there."""
    from pipeline.config import load_recipe
    from pipeline.models.build import build_bridge, load_bert
    from pipeline.models.stage1 import Stage1Bridge
    from pipeline.weights import huggingface, lavis, native
    from pipeline.weights.names import huggingface_name

    if recipe is None:
        settings, tensors = native.read_weights(source)
        bridge = build_bridge(settings)
        native.load_into(bridge, tensors, source)
        step, noted = native.read_provenance(source)
        return bridge, settings, step, noted.splitlines()
    settings = load_recipe(recipe, edits)
    bridge = build_bridge(settings)
    if isinstance(bridge, Stage1Bridge) and read_as == "huggingface":
        load_bert(bridge.qformer, settings.qformer)  # for what the folder does not hold
    own = bridge.state_dict()
    if read_as == "lavis":
        state = lavis.read_file(source)
        tensors, left_out = lavis.from_lavis(state, list(own), language_kind(settings), source)
    else:
        huggingface.check_language(source, language_model_type(settings))
        tensors, left_out = huggingface.read_folder(source, list(own))
    notes = (
        [f"left to the recipe's towers: {len(left_out)} tensors, {left_out[0]} to {left_out[-1]}"] if left_out else []
    )
    if read_as == "huggingface":
        fresh = [name for name in own if huggingface_name(name) is None]
        tensors |= {name: own[name] for name in fresh}
        notes += [f"not in transformers' format, as in a fresh bridge: {name}" for name in fresh]
    native.load_into(bridge, tensors, source)
    return bridge, settings, 0, notes


def _write_huggingface(bridge: "nn.Module", settings: "Recipe", destination: Path) -> list[str]:
    from pipeline.models.build import build_tokenizer
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.models.language import build_language
    from pipeline.models.stage1 import Stage1Bridge
    from pipeline.models.stage2 import Stage2Bridge
    from pipeline.models.vision import build_vision
    from pipeline.weights.huggingface import write_folder

    vision = build_vision(settings.vision)
    model: RetrievalModel | LanguageModel
    if isinstance(bridge, Stage1Bridge):
        model = RetrievalModel(settings, vision, bridge, build_tokenizer(settings.qformer))
    else:
        assert isinstance(bridge, Stage2Bridge) and settings.language is not None
        model = LanguageModel(settings, vision, bridge, build_language(settings.language, "cpu"))
    notes = [f"not in transformers' format, left out: {name}" for name in write_folder(model, destination)]
    eps = (
        f"{bridge.ln_vision.eps} here is the image encoder's own there: set vision_model.post_layernorm.eps to compare"
    )
    return [*notes, f"epsilon of ln_vision: {eps}"]


def language_model_type(settings: "Recipe") -> str | None:
    """transformers' name for the family of the recipe's language model; None for stage 1."""
    from pipeline.models.language import language_config

    return language_config(settings.language).model_type if settings.language else None


def language_kind(settings: "Recipe") -> str | None:
    """`causal` or `seq2seq`, of the recipe's language model; None for stage 1."""
    from pipeline.models.language import language_config

    if settings.language is None:
        return None
    return "seq2seq" if language_config(settings.language).is_encoder_decoder else "causal"


if __name__ == "__main__":
    sys.exit(main())
