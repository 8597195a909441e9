"""Find copies, placeholders and evaluation pictures in downloaded shards, and list them for removal.

It reads the ledgers of the shards, decodes no picture again, and writes one drop list for each shard.
`data_prep.capfilt --drops DROPS` then leaves these samples out and counts them. The first of equal or near pictures
stays: in the order of the folders as given, of the names of their shards, and of the rows. So give the most valuable
folder first, such as one with human captions. Every picture is compared with all earlier ones, kept or not. So the
result does not depend on which worker made a shard, or when. A warning says how many pictures with human captions are
listed as copies: with --drops these captions are lost.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, print_settings
from pipeline.progress_line import ProgressLine

if TYPE_CHECKING:
    from data_prep.copies.picture_rules import Rules, Verdicts
    from data_prep.shards.drop_lists import DropLine

RULES = ("exact", "near", "placeholders")
MOST_BITS_APART = 8
"""Above it the search would sort thousands of tables, and different pictures come as near as that."""


def find_drops(
    folders: Sequence[Path], output: Path, rules: "Rules", evaluation: Sequence[Path] = ()
) -> dict[str, object]:
    """Write the drop list of every finished shard of the folders; returns the summary, which is also in `summary.json`.

    Raises ValueError, with folder or file, when a folder has no finished shard, has no ledger with hashes, or is named
    twice.
    """
    import numpy as np

    from data_prep.copies.picture_hashes import evaluation_hashes, joined, shard_hashes
    from data_prep.copies.picture_rules import EVALUATION, REASONS, judge
    from data_prep.shards.drop_lists import write_drop_list
    from data_prep.shards.receipts import read_receipt, source_of
    from pipeline.files import replace_file

    tars = _tars(folders)
    named = [(f"{folder}/{name}", phash) for folder in evaluation for name, phash in evaluation_hashes(folder)]
    parts = [shard_hashes(tar) for tar in ProgressLine("reading", len(tars), "shards").follow(tars)]
    starts = np.cumsum([0, *map(len, parts)])
    hashes = joined(parts)
    del parts
    with ProgressLine(f"comparing {len(hashes):,} pictures"):
        verdicts = judge(hashes, np.array([phash for _, phash in named], np.uint64), rules)
    dropped, copies_with_human_texts = Counter[str](), Counter[str]()
    for number, tar in enumerate(ProgressLine("writing", len(tars), "drop lists").follow(tars)):
        lines = _lines(tars, starts.tolist(), number, verdicts, [name for name, _ in named])
        write_drop_list(output, tar, read_receipt(tar).tar_sha256, lines)
        dropped.update(line.reason for line in lines)
        if _has_human_texts(tar.with_name(f"{source_of(tar)}.download.json")):
            copies_with_human_texts[source_of(tar)] += sum(line.reason != REASONS[EVALUATION] for line in lines)
    summary: dict[str, object] = {
        "pictures": len(hashes),
        "evaluation_pictures": len(named),
        "kept": len(hashes) - dropped.total(),
    }
    summary["dropped_by_reason"] = dict(sorted(dropped.items()))
    summary["copies_with_human_texts"] = {name: number for name, number in copies_with_human_texts.items() if number}
    replace_file(output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


@cache
def _has_human_texts(settings: Path) -> bool:
    """Whether a download has human captions or questions, by the settings that it left in its folder."""
    from pipeline.files import read_validated

    if not settings.is_file():
        return False
    return read_validated(settings, dict[str, object], "the settings of a download").get("captions") == "human"


def _tars(folders: Sequence[Path]) -> list[Path]:
    from data_prep.shards.receipts import finished_shards

    for folder in folders:
        if not folder.is_dir() or not finished_shards(folder):
            raise ValueError(f"{folder}: has no finished shard (a tar with its receipt); run data_prep.download first")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{', '.join(map(str, folders))}: a folder is named twice; name each folder once")
    return [tar for folder in folders for tar in finished_shards(folder)]


def _lines(
    tars: Sequence[Path], starts: list[int], number: int, verdicts: "Verdicts", evaluation: Sequence[str]
) -> "list[DropLine]":
    """The lines of shard `number`, in the order of its samples."""
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
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="output folders of data_prep.download")
    parser.add_argument("--output", metavar="DROPS", required=True, type=Path, help="the folder for the drop lists")
    parser.add_argument(
        "--evaluation",
        metavar="DIR",
        nargs="+",
        type=Path,
        default=[],
        help="folders of evaluation pictures, as image files or shards; pictures near them are dropped",
    )
    parser.add_argument("--without", choices=RULES, nargs="+", default=[], help="rules to skip")
    parser.add_argument(
        "--placeholder-urls",
        metavar="N",
        type=int,
        default=10,
        help="a picture with at least N URLs is a placeholder (default: %(default)s)",
    )
    parser.add_argument(
        "--bits-apart",
        metavar="N",
        type=int,
        default=4,
        help="perceptual hashes are near if at most N of 64 bits differ (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.bits_apart <= MOST_BITS_APART:
        parser.error(f"--bits-apart {options.bits_apart}: must be from 0 to {MOST_BITS_APART}")
    if options.placeholder_urls < 2:
        parser.error(f"--placeholder-urls {options.placeholder_urls}: must be at least 2")
    print_settings(options)

    def work() -> int:
        from data_prep.copies.picture_rules import Rules

        urls = 0 if "placeholders" in options.without else options.placeholder_urls
        rules = Rules("exact" not in options.without, "near" not in options.without, urls, options.bits_apart)
        summary = find_drops(options.folders, options.output, rules, options.evaluation)
        if by_source := summary["copies_with_human_texts"]:
            print(
                f"warning: pictures with human captions or questions are listed as copies: {by_source}; with capfilt "
                "--drops their texts are lost; run this for their folders with --without exact near placeholders",
                file=sys.stderr,
            )
        print(f"{summary['pictures']} pictures, {summary['kept']} kept, dropped {summary['dropped_by_reason']}")
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
