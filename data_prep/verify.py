"""Compare a manifest with the disk, and print every fault.

It checks every byte of the tars, their offset tables, the files beside them (receipts, side tables, ledgers), and the
sums in the manifest.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from data_prep.auditing.manifest_checks import find_faults, total_faults
from data_prep.shards.processes import add_workers
from pipeline.command_line import Parser, finish, print_settings, printable
from pipeline.data.manifest import COLUMNS, Manifest, dropped_by_source, read_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.verify", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a manifest of data_prep.index")
    parser.add_argument("--decode", action="store_true", help="also decode every picture (slower)")
    add_workers(parser)
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        content = read_manifest(options.manifest)
        manifest = Manifest(options.manifest.parent, content.shards)
        faults = 0
        found = find_faults(manifest, decode=options.decode, workers=options.workers, empty=content.empty_shards)
        for fault in chain(total_faults(options.manifest, manifest, content), found):
            faults += 1
            detail = fault.detail.removeprefix(f"{fault.path}: ")  # of an error that already names its file
            print(printable(f"fault: {fault.kind}: {fault.path}: {' '.join(detail.split())}"))
        if faults:
            raise ValueError(
                f"{options.manifest}: {faults} faults in {len(manifest.shards)} shards; each is printed above"
            )
        for source, reasons in dropped_by_source([*manifest.shards, *content.empty_shards]).items():
            if reasons:
                counts = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
                print(printable(f"dropped from {source}: {counts}"))
        if old := sum(manifest.table(shard).shape[1] < COLUMNS for shard in manifest.shards):
            print(
                f"without digests: {old} of {len(manifest.shards)} shards, so training would not notice another tar in "
                "their place; run data_prep.index again (of a split: data_prep.split, too)"
            )
        without = f" ({len(content.empty_shards)} more shards are empty)" if content.empty_shards else ""
        questions = f", {manifest.questions} questions" if manifest.questions else ""
        totals = f"{len(manifest.shards)} shards, {manifest.samples} samples, {manifest.captions} captions{questions}"
        print(f"no faults: {totals}{without}")
        print(options.manifest)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
