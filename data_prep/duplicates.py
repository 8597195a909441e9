"""Find pictures that should not be trained on: `python -m data_prep.duplicates DIR... --output DROPS`.

It reads the ledgers of downloaded shards (no picture is decoded again) and writes a drop list for each shard, which
`data_prep.capfilt --drops DROPS` leaves out and counts. Of equal or near pictures the first stays: in the order of the
folders given, of their shards' names, and of the rows; so name first what is worth most, such as human captions. Every
picture is compared with all earlier ones, kept or not: nothing depends on which worker made a shard, or when.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.command_line import Parser, finish, print_settings

if TYPE_CHECKING:
    from data_prep.copies.picture_rules import Rules, Verdicts
    from data_prep.shards.drop_lists import DropLine

RULES = ("exact", "near", "placeholders")
MOST_BITS_APART = 8
"""Beyond it the tables to sort are thousands, and different pictures come as near."""


def find_drops(
    folders: Sequence[Path], output: Path, rules: "Rules", evaluation: Sequence[Path] = ()
) -> dict[str, object]:
    """Write the drop list of every finished shard of the folders; returns the summary, also in `summary.json`.

    Raises ValueError, naming folder or file, when one holds no finished shard, no ledger with hashes, or comes twice.
    """
    import numpy as np

    from data_prep.copies.picture_hashes import evaluation_hashes, joined, shard_hashes
    from data_prep.copies.picture_rules import judge
    from data_prep.shards.drop_lists import write_drop_list
    from data_prep.shards.receipts import read_receipt
    from pipeline.files import replace_file

    tars = _tars(folders)
    named = [(f"{folder}/{name}", phash) for folder in evaluation for name, phash in evaluation_hashes(folder)]
    parts = [shard_hashes(tar) for tar in tqdm(tars, "reading", unit="shard", disable=not sys.stderr.isatty())]
    starts = np.cumsum([0, *map(len, parts)])
    hashes = joined(parts)
    del parts
    verdicts = judge(hashes, np.array([phash for _, phash in named], np.uint64), rules)
    dropped = Counter[str]()
    for number, tar in enumerate(tars):
        lines = _lines(tars, starts.tolist(), number, verdicts, [name for name, _ in named])
        write_drop_list(output, tar, read_receipt(tar).tar_sha256, lines)
        dropped.update(line.reason for line in lines)
    summary: dict[str, object] = {
        "pictures": len(hashes),
        "evaluation_pictures": len(named),
        "kept": len(hashes) - dropped.total(),
    }
    summary["dropped_by_reason"] = dict(sorted(dropped.items()))
    replace_file(output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _tars(folders: Sequence[Path]) -> list[Path]:
    from data_prep.shards.receipts import finished_shards

    for folder in folders:
        if not folder.is_dir() or not finished_shards(folder):
            raise ValueError(
                f"{folder}: no finished shard (a tar with its receipt) in it; run data_prep.download first"
            )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(
            f"{', '.join(map(str, folders))}: a folder comes twice; its pictures would be their own copies"
        )
    return [tar for folder in folders for tar in finished_shards(folder)]


def _lines(
    tars: Sequence[Path], starts: list[int], number: int, verdicts: "Verdicts", evaluation: Sequence[str]
) -> "list[DropLine]":
    """The lines of shard `number`, in its order."""
    import bisect

    from data_prep.copies.picture_hashes import kept_rows
    from data_prep.copies.picture_rules import EVALUATION, REASONS
    from data_prep.shards.drop_lists import DropLine

    lines = []
    for place, row in enumerate(kept_rows(tars[number], ("status", "key")), starts[number]):
        code, like = int(verdicts.code[place]), int(verdicts.like[place])
        if not code:
            continue
        shard = bisect.bisect_right(starts, like) - 1
        what = (
            evaluation[like]
            if code == EVALUATION
            else f"{tars[shard].parent.name}/{tars[shard].stem}:{like - starts[shard]}"
        )
        lines.append(DropLine(str(row["key"]), REASONS[code], what))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.duplicates", description=__doc__)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="outputs of data_prep.download")
    parser.add_argument("--output", metavar="DROPS", required=True, type=Path, help="folder of the drop lists")
    parser.add_argument(
        "--evaluation",
        metavar="DIR",
        nargs="+",
        type=Path,
        default=[],
        help="pictures that are tested on: files or shards",
    )
    parser.add_argument("--without", choices=RULES, nargs="+", default=[], help="rules that are not applied")
    parser.add_argument(
        "--placeholder-urls", metavar="N", type=int, default=10, help="a picture under so many URLs is a placeholder"
    )
    parser.add_argument("--bits-apart", type=int, default=4, help="near hashes differ in at most so many of 64 bits")
    options = parser.parse_args(arguments)
    if not 0 <= options.bits_apart <= MOST_BITS_APART:
        parser.error(f"--bits-apart {options.bits_apart}: has to lie in 0 .. {MOST_BITS_APART}")
    if options.placeholder_urls < 2:
        parser.error(f"--placeholder-urls {options.placeholder_urls}: at least 2")
    print_settings(options)

    def work() -> int:
        from data_prep.copies.picture_rules import Rules

        urls = 0 if "placeholders" in options.without else options.placeholder_urls
        rules = Rules("exact" not in options.without, "near" not in options.without, urls, options.bits_apart)
        summary = find_drops(options.folders, options.output, rules, options.evaluation)
        print(f"{summary['pictures']} pictures, {summary['kept']} kept, dropped {summary['dropped_by_reason']}")
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
