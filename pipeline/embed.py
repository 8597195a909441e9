"""`python -m pipeline.embed --weights W --image FILE... --output FILE`: features of pictures and texts, from stage 1.

A picture has a unit-length feature for each query, and a text has one. Their cosine, the largest over the queries, is
ITC's. A picture that cannot be used is left out with a line on stderr, and the exit code is 1.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.command_line import Parser, finish
from pipeline.files import check_target, replacing
from pipeline.inputs import Faults, add_pictures, add_weights, decoded, load_weights, named_pictures

Part = tuple[str, list[str], Any]
"""Pictures or texts ("image", "text"), their names, and features [N, Q, E] or [N, E]."""


def write_npz(path: Path, parts: Iterator[Part]) -> None:
    """`image` and `text` [N] are names, `image_features` and `text_features` their rows, fp32. All are in memory."""
    import numpy as np

    names: dict[str, list[str]] = {"image": [], "text": []}
    found: dict[str, list[Any]] = {"image": [], "text": []}
    for kind, some, features in parts:
        names[kind] += some
        found[kind].append(features)
    arrays: dict[str, Any] = {kind: np.array(names[kind], dtype=str) for kind in names if names[kind]}
    arrays |= {f"{kind}_features": np.concatenate(found[kind]) for kind in arrays}
    with replacing(path) as file:
        np.savez(file, **arrays)


def write_parquet(path: Path, parts: Iterator[Part]) -> None:
    """A row a feature: kind, name, query (null of a text or a mean), feature fp32 [E]. Only a batch is in memory."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {"kind": pa.string(), "name": pa.string(), "query": pa.int32()}
    schema = pa.schema(columns | {"feature": pa.list_(pa.float32())})
    with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for kind, names, features in parts:
            queries = features.shape[1] if features.ndim == 3 else 1
            query = list(range(queries)) if features.ndim == 3 else [None]
            content: dict[str, Any] = {
                "kind": [kind] * len(names) * queries,
                "name": np.repeat(np.array(names, dtype=object), queries),
                "query": query * len(names),
                "feature": list(features.reshape(len(names) * queries, -1)),
            }
            writer.write_table(pa.table(content, schema=schema))


WRITERS = {".npz": write_npz, ".parquet": write_parquet}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.embed", description=__doc__)
    add_weights(parser, 1)
    add_pictures(parser, parser)
    parser.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="texts")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE",
                        help="FILE.npz, written from memory, or FILE.parquet, for many pictures")  # fmt: skip
    parser.add_argument("--pooled", choices=("none", "mean"), default="none",
                        help="mean: one row a picture, for other programs; ITC needs them all")  # fmt: skip
    options = parser.parse_args(arguments)
    if not options.image and not options.text:
        parser.error("argument --image: is missing; give pictures, or --text")
    if options.output.suffix not in WRITERS:
        parser.error(f"argument --output: {options.output} is of no known format; name a .npz or a .parquet file")

    def work() -> int:
        check_target(options.output)
        model, faults = load_weights(options, 1), Faults()

        def parts() -> Iterator[Part]:
            for start in range(0, len(options.text), options.batch_size):
                texts = options.text[start : start + options.batch_size]
                yield "text", texts, model.embed(text=texts)
            wanted = named_pictures(options.image)
            for some, pixels in decoded(wanted, len(wanted), model.image_size_px, options, faults):
                yield "image", [each.image for each in some], model.embed(pixels, pooled=options.pooled)

        WRITERS[options.output.suffix](options.output, parts())
        print(options.output)
        return faults.exit_code()

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
