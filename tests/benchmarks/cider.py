"""CIDEr of 5,000 predictions against five references each, natively and by pycocoevalcap, from the same tokens.

    python -m tests.benchmarks.cider [--images 5000] [--references 5] [--repeats 3]

Both in this process, one after the other; the least time of each counts. The scores must agree to 1e-9.
"""

import argparse
import random
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from eval.metrics.captions import cider
from eval.metrics.ptb_tokens import tokenize

WORDS = 3000  # of the vocabulary, drawn as unevenly as words are


def captions(rng: random.Random, count: int) -> list[str]:
    """Tokenised captions of 6 to 15 words, the n-th most frequent word drawn in proportion to 1/n."""
    vocabulary = [f"w{n}" for n in range(WORDS)]
    reach = list(accumulate(1 / (n + 1) for n in range(WORDS)))
    texts = (" ".join(rng.choices(vocabulary, cum_weights=reach, k=rng.randint(6, 15))) for _ in range(count))
    return tokenize(list(texts))


def least_time(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times, answer = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        answer = work()
        times.append(time.perf_counter() - start)
    return min(times), answer


def main() -> None:
    from pycocoevalcap.cider.cider import Cider

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = random.Random(0)
    predictions = captions(rng, options.images)
    flat = captions(rng, options.images * options.references)
    references = [flat[at : at + options.references] for at in range(0, len(flat), options.references)]
    gts, res = dict(enumerate(references)), {image: [caption] for image, caption in enumerate(predictions)}
    native_s, ours = least_time(lambda: cider(predictions, references), options.repeats)
    theirs_s, (_, theirs) = least_time(lambda: Cider().compute_score(gts, res), options.repeats)
    gap = float(np.abs(ours - theirs).max())
    assert gap < 1e-9, gap
    print(f"{options.images} images x {options.references} references, largest difference {gap:.1e}")
    print(f"pycocoevalcap {theirs_s:.2f} s, native {native_s:.2f} s: {theirs_s / native_s:.1f} times as fast")


if __name__ == "__main__":
    main()
