"""Convert weights between this project, LAVIS and transformers: every tensor has its place, or is listed as left out.

    python -m pipeline.convert SRC DST --from FORMAT --to FORMAT [--recipe R.yaml]

FORMAT is one of:
    native        a run folder, a checkpoint folder, or its trainable.safetensors
    lavis         a .pth file
    huggingface   a folder that save_pretrained() wrote, or its hub id
lavis and huggingface do not say which towers the weights belong to: --recipe does. Towers in SRC must be the recipe's.
With a recipe of fine-tuning (`vision.trained: true`), the weights' own image encoder is converted too.
"""

import json
import shutil
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.command_line import Parser, finish, print_settings, printable
from pipeline.config import Recipe, check_places, load_recipe
from pipeline.files import naming_full_disk, replace_file
from pipeline.model_card import NAME, Origin, model_card, read_scores
from pipeline.progress_line import ProgressLine

if TYPE_CHECKING:
    from pipeline.models.build import Bridge

FORMATS = ("native", "lavis", "huggingface")
MAX_SHOWN = 12  # notes of one kind that are printed; the rest is in the metadata


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.convert", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    read = parser.add_argument_group("what to read")
    read.add_argument("source", type=Path, metavar="SRC", help="the weights; for huggingface also a hub id")
    read.add_argument("--from", dest="read_as", choices=FORMATS, required=True, help="the format of SRC")
    read.add_argument(
        "--recipe", type=Path, metavar="R.yaml", help="names towers and sizes; needed unless SRC is native"
    )
    read.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE",
                      help="change fields of --recipe; of native SRC: new places, language.precision")  # fmt: skip
    write = parser.add_argument_group("what to write")
    write.add_argument("destination", type=Path, metavar="DST", help="a new folder; for lavis a new file")
    write.add_argument("--to", dest="write_as", choices=FORMATS, required=True, help="the format of DST")
    write.add_argument(
        "--image-encoder",
        type=Path,
        metavar="FOLDER",
        help="for a recipe that freezes its image encoder: write SRC's own",
    )
    write.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        metavar="metrics.json",
        help="of eval.score, of these weights: for the card, README.md in DST",
    )
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    print_settings(options)

    def work() -> None:
        recipe = load_recipe(options.recipe, options.set) if options.recipe else None
        of, formats = options, (options.read_as, options.write_as)
        with ProgressLine(f"converting {of.source}"):
            convert(of.source, of.destination, *formats, recipe, of.image_encoder, of.set, of.scores)
        print(options.destination)

    return finish(work)


def _check_options(parser: Parser, options: Namespace) -> None:
    """Wrong usage ends the command with one line."""
    native, encoder = options.read_as == "native", options.image_encoder
    if native:
        try:
            check_places(options.set)
        except ValueError as error:
            parser.error(str(error))
    if native and options.recipe:
        parser.error(f"--recipe {options.recipe}: native weights hold their own recipe; remove --recipe")
    if native and encoder:
        parser.error(f"--image-encoder {encoder}: is for SRC of LAVIS or transformers; remove this flag")
    if not native and not options.recipe:
        parser.error(f"--recipe: is missing, and {options.read_as} weights do not name their towers; give a recipe")
    if options.scores and options.write_as == "lavis":
        parser.error(f"--scores {options.scores[0]}: are for a card, and a single file of LAVIS has none; remove it")
    if not options.destination.name:
        parser.error(f"DST {options.destination}: is not a new file or folder; give its name")
    destination = options.destination.absolute()
    if encoder and destination in (encoder.absolute(), *encoder.absolute().parents):
        parser.error(f"--image-encoder {encoder}: must lie outside DST {options.destination}; give another folder")
    for path in (options.destination, conversion_note(options.destination), encoder):
        if path and path.exists():
            parser.error(f"{path}: exists already; give another name, or remove it")


def convert(
    source: Path,
    destination: Path,
    read_as: Literal["native", "lavis", "huggingface"],
    write_as: str,
    recipe: Recipe | None,
    image_encoder: Path | None = None,
    places: Sequence[str] = (),
    scores: Sequence[Path] = (),
) -> None:
    """Read, check each name and shape against the model that the recipe describes, write. Raises ValueError.

    A folder has a card, README.md, with `scores`.

    The result appears when it is whole.
    """
    from pipeline.weights.any_format import find_weights
    from pipeline.weights.native import read_metadata

    scored = read_scores(scores, find_weights(source, recipe, places).sha256()) if scores else []
    bridge, settings, step, notes = _read(source, read_as, recipe, image_encoder, places)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if write_as == "lavis":
        from pipeline.weights.export import export_lavis

        notes += export_lavis(bridge, settings, destination)
        _write_notes(conversion_note(destination), source, read_as, step, notes, settings)
    else:
        try:
            with naming_full_disk(destination):
                if write_as == "native":
                    from pipeline.weights.native import save_weights

                    origin = {"converted_from": f"{read_as}: {source}", "notes": "\n".join(notes)}
                    partial.mkdir()
                    save_weights(bridge, settings, step, partial, **origin)
                else:
                    from pipeline.weights.export import export_huggingface
                    from pipeline.weights.huggingface_config import NOTES

                    notes += export_huggingface(bridge, settings, partial)
                    _write_notes(partial / NOTES, source, read_as, step, notes, settings)
                native = read_as == "native"
                came = read_metadata(source).get("converted_from", "") if native else f"{read_as}: {source}"
                card = model_card(destination.name, write_as, settings, Origin(step, came, shown(notes)), scored)
                replace_file(partial / NAME, card)
            partial.rename(destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for line in shown(notes):
        print(printable(line), file=sys.stderr)


def _write_notes(path: Path, source: Path, read_as: str, step: int, notes: list[str], settings: Recipe) -> None:
    content = {"source": str(source), "from": read_as, "step": step, "notes": notes}
    content["recipe"] = settings.model_dump(mode="json")
    replace_file(path, json.dumps(content, indent=1) + "\n")


def shown(notes: list[str]) -> list[str]:
    """The notes to print: of many with the same beginning only the first, and how many more the metadata has."""
    lines = []
    for _what, same in groupby(notes, key=lambda note: note.partition(": ")[0]):
        group = list(same)
        few = len(group) <= MAX_SHOWN
        lines += group if few else [f"{group[0]} and {len(group) - 1} more; their names are in the result's metadata"]
    return lines


def conversion_note(destination: Path) -> Path:
    """Where the notes on a single converted file go."""
    return destination.with_name(f"{destination.name}.conversion.json")


def _read(
    source: Path,
    read_as: Literal["native", "lavis", "huggingface"],
    recipe: Recipe | None,
    image_encoder: Path | None,
    places: Sequence[str] = (),
) -> tuple["Bridge", Recipe, int, list[str]]:
    """The bridge with its weights, its recipe, its step (0: unknown), and notes on what had no place or was missing."""
    from pipeline.models.build import build_bridge
    from pipeline.weights import huggingface, native
    from pipeline.weights.foreign import read_foreign

    if read_as == "native":
        settings, tensors = native.read_weights(source, places)
        bridge = build_bridge(settings)
        native.load_into(bridge, tensors, source)
        step, noted = native.read_provenance(source)
        return bridge, settings, step, noted.splitlines()
    assert recipe is not None
    place = huggingface.local_folder(source) if read_as == "huggingface" else source
    bridge, settings, notes = read_foreign(place, read_as, recipe, image_encoder)
    return bridge, settings, 0, notes


if __name__ == "__main__":
    sys.exit(main())
