"""CIDEr of 5,000 predictions against five references each, natively and by pycocoevalcap, from the same tokens.

    python -m tests.benchmarks.cider [--images 5000] [--references 5] [--repeats 3]

Both in this process by turns; the least processor time of each counts (either uses one thread), so that other work
on the machine disturbs little. The scores must agree to 1e-9.
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


def least_times(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of processor time and the answer of each way."""
    times, answers = dict.fromkeys(ways, float("inf")), {}
    for _ in range(repeats):
        for name, work in ways.items():
            start = time.process_time()
            answers[name] = work()
            times[name] = min(times[name], time.process_time() - start)
    return times, answers


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
    ways = {"native": lambda: cider(predictions, references), "theirs": lambda: Cider().compute_score(gts, res)[1]}
    seconds, scores = least_times(ways, options.repeats)
    gap = float(np.abs(scores["native"] - scores["theirs"]).max())
    assert gap < 1e-9, gap
    print(f"{options.images} images x {options.references} references, largest difference {gap:.1e}")
    ratio = seconds["theirs"] / seconds["native"]
    print(f"pycocoevalcap {seconds['theirs']:.2f} s, native {seconds['native']:.2f} s: {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
