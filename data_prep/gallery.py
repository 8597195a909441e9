"""A gallery of a data set in one HTML file: `python -m data_prep.gallery MANIFEST --output FILE.html`.

It shows pictures with their web caption, the captions kept, with scores, and why the others were dropped, and how
sizes, lengths, scores and losses are distributed. The page asks nothing of any server.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.command_line import Parser, finish, positive, print_settings
from data_prep.shards import tar_files
from data_prep.shards.checked_manifest import load_accounts, load_checked


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.gallery", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path)
    parser.add_argument("--output", metavar="FILE.html", type=Path, required=True)
    parser.add_argument("--samples", metavar="N", type=positive, default=48, help="pictures to show")
    parser.add_argument(
        "--ledger", metavar="DIR", type=Path, nargs="+", default=[], help="outputs of data_prep.download"
    )
    parser.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        from data_prep.viewing.gallery_page import gallery_page
        from data_prep.viewing.gallery_statistics import gather, read_ledgers

        manifest, empty = load_checked(options.manifest), load_accounts(options.manifest).empty
        statistics, stories = gather(manifest, options.samples, options.seed, empty)
        ledgers = read_ledgers(options.ledger) if options.ledger else None
        page = gallery_page(manifest, options.manifest.name, statistics, stories, ledgers)
        tar_files.replace_file(options.output, page.encode("utf-8", "replace"))
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
