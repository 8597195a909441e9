"""Show a data set on one HTML page: `python -m data_prep.gallery MANIFEST --output FILE.html`.

The page shows random pictures. Each has its web caption, the captions that were kept, their scores, and why the other
captions were dropped; or its questions with their answers, and how many people gave them. Charts show picture sizes,
caption lengths, scores and what was dropped. The page loads nothing from the network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import Parser, finish, positive, print_settings
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.files import replace_file


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.gallery", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a manifest of data_prep.index")
    parser.add_argument("--output", metavar="FILE.html", type=Path, required=True, help="the page; it is replaced")
    parser.add_argument("--samples", metavar="N", type=positive, default=48, help="number of pictures (default 48)")
    ledger_help = "output folders of data_prep.download: adds charts of dropped rows and of hosts"
    parser.add_argument("--ledger", metavar="DIR", type=Path, nargs="+", default=[], help=ledger_help)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the random choice (default 0)")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        from data_prep.viewing.gallery_page import gallery_page
        from data_prep.viewing.gallery_statistics import gather, read_ledgers

        content = read_manifest(options.manifest)
        manifest = Manifest(options.manifest.parent, content.shards)
        statistics, shown = gather(manifest, options.samples, options.seed, content.empty_shards)
        ledgers = read_ledgers(options.ledger) if options.ledger else None
        page = gallery_page(manifest, options.manifest.name, statistics, shown, ledgers)
        replace_file(options.output, page.encode("utf-8", "replace"))
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
