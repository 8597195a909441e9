"""BLEU 1-4, ROUGE-L and CIDEr of pycocoevalcap 1.2 in numpy: the same numbers to 1e-9 from the same tokens.

A tokenised caption is a string of tokens joined by spaces (`ptb_tokens.tokenize`). As in pycocoevalcap, BLEU and CIDEr
split it at any white space, ROUGE at plain spaces. Scores are fractions here (CIDEr 1.216); papers print 100 times
that.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

MAX_NGRAM = 4
CIDER_SIGMA = 6.0  # of the length penalty, in tokens
CIDER_SCALE = 10.0
ROUGE_BETA = 1.2

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CaptionScores:
    """Each image's scores, in the order given. `bleu_statistics` [images, 10]: the sums that corpus BLEU is made of."""

    bleu: Floats  # [images, 4]
    bleu_statistics: Floats
    rouge_l: Floats  # [images]
    cider: Floats  # [images]


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one tokenised prediction an image against its tokenised references; CIDEr's idf is that of these images."""
    if len(predictions) != len(references):
        raise ValueError(f"predictions: {len(predictions)}, but references of {len(references)} images")
    if not predictions:
        raise ValueError("predictions: 0 images, expected at least one")
    empty = [row for row, captions in enumerate(references) if not captions]
    if empty:
        raise ValueError(f"references: image row {empty[0]} has no reference caption")
    pairs = list(zip(predictions, references, strict=True))
    statistics = np.array([_bleu_statistics(*pair) for pair in pairs], dtype=np.float64)
    rouge = np.array([_rouge_l(*pair) for pair in pairs])
    return CaptionScores(corpus_bleu(statistics), statistics, rouge, cider(predictions, references))


def corpus_bleu(statistics: Floats) -> Floats:
    """BLEU 1-4 [..., 4] of summed statistics [..., 10]: guessed n-grams (4), correct n-grams (4), both lengths.

    Brevity penalty against the closest reference length; no smoothing but pycocoevalcap's two constants.
    """
    guessed, correct = statistics[..., 0:4], statistics[..., 4:8]
    length, reference_length = statistics[..., 8], statistics[..., 9]
    precision = (correct + 1e-15) / (guessed + 1e-9)
    bleu: Floats = np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, MAX_NGRAM + 1))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    penalty = np.where(ratio < 1, np.exp(np.minimum(0.0, 1 - 1 / ratio)), 1.0)
    return bleu * penalty[..., None]


def _ngrams(caption: str) -> tuple[int, Counter[tuple[str, ...]]]:
    words = caption.split()
    grams = (tuple(words[at : at + n]) for n in range(1, MAX_NGRAM + 1) for at in range(len(words) - n + 1))
    return len(words), Counter(grams)


def _bleu_statistics(prediction: str, references: Sequence[str]) -> list[int]:
    length, counts = _ngrams(prediction)
    counted = [_ngrams(reference) for reference in references]
    closest = min((abs(words - length), words) for words, _ in counted)[1]
    correct = [0] * MAX_NGRAM
    for gram, count in counts.items():
        correct[len(gram) - 1] += min(count, max(reference[gram] for _, reference in counted))
    return [max(0, length - n) for n in range(MAX_NGRAM)] + correct + [length, closest]


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    words = prediction.split(" ")
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _longest_common_subsequence(words, reference_words)
        precision, recall = max(precision, common / len(words)), max(recall, common / len(reference_words))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Its length, with one bit a word of `left` (Hyyro 2004)."""
    where: dict[str, int] = {}
    for at, word in enumerate(left):
        where[word] = where.get(word, 0) | 1 << at
    everything = (1 << len(left)) - 1
    row = everything
    for word in right:
        matched = row & where.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(left) - (row & everything).bit_count()


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """CIDEr (with clipping and length penalty: CIDEr-D, as pycocoevalcap has it) of each image."""
    images = len(predictions)
    image_of_reference = np.repeat(np.arange(images), [len(captions) for captions in references])
    words = [caption.split() for caption in predictions]
    words += [caption.split() for captions in references for caption in captions]
    image = np.concatenate([np.arange(images), image_of_reference])
    lengths = np.array([len(caption) for caption in words], dtype=np.int64)
    flat = list(chain.from_iterable(words))
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(flat))}
    token = np.fromiter(map(vocabulary.__getitem__, flat), dtype=np.int64, count=len(flat))
    caption = np.repeat(np.arange(len(words)), lengths)

    # Penalised by the difference in bigrams, which is that of the lengths but for empty captions.
    bigrams = np.maximum(lengths - 1, 0)
    difference = (bigrams[image_of_reference] - bigrams[images:]).astype(np.float64)
    penalty = np.exp(-(difference**2) / (2 * CIDER_SIGMA**2))
    total = np.zeros(len(image_of_reference))
    gram, starts = token, np.arange(len(token))
    for n in range(1, MAX_NGRAM + 1):
        if n > 1:  # the n-gram at a start = the shorter one there, then the word n - 1 further on in the same caption
            fits = starts + n - 1 < len(token)
            fits[fits] = caption[starts[fits]] == caption[starts[fits] + n - 1]
            gram, starts = gram[fits], starts[fits]
            gram = np.unique(gram * (len(vocabulary) + 1) + token[starts + n - 1], return_inverse=True)[1]
        total += _cosine(gram, caption[starts], image, images) * penalty
    per_image = np.bincount(image_of_reference, weights=total / MAX_NGRAM, minlength=images)
    return CIDER_SCALE * per_image / np.bincount(image_of_reference, minlength=images)


def _cosine(gram: Integers, caption: Integers, image: Integers, images: int) -> Floats:
    """Clipped tf-idf cosine of each reference with its image's prediction, for n-grams of one length.

    `gram` and `caption` say, for every place, which n-gram stands there and in which caption (predictions first, one an
    image, then references); `image` [captions] says whose a caption is.
    """
    grams, captions = int(gram.max(initial=-1)) + 1, len(image)
    entry, count = np.unique(caption * grams + gram, return_counts=True)
    of_caption, of_gram = (entry // grams, entry % grams) if grams else (entry, entry)
    is_reference = of_caption >= images
    pairs = np.sort(image[of_caption[is_reference]] * grams + of_gram[is_reference])
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique would hash them, which takes five times as long
    document_frequency = np.bincount(pairs % grams if grams else pairs, minlength=grams)
    weight = count * (np.log(float(images)) - np.log(np.maximum(1.0, document_frequency)))[of_gram]
    norm = np.sqrt(np.bincount(of_caption, weights=weight**2, minlength=captions))

    predicted, predicted_weight = entry[~is_reference], weight[~is_reference]
    wanted = image[of_caption[is_reference]] * grams + of_gram[is_reference]
    at = np.minimum(np.searchsorted(predicted, wanted), max(len(predicted) - 1, 0))
    found = predicted[at] == wanted if len(predicted) else np.zeros(len(wanted), dtype=bool)
    reference_weight = weight[is_reference][found]
    shared = np.minimum(predicted_weight[at[found]], reference_weight) * reference_weight
    dot = np.bincount(of_caption[is_reference][found] - images, weights=shared, minlength=captions - images)
    norms = norm[image[images:]] * norm[images:]
    cosine: Floats = np.divide(dot, norms, out=np.zeros(len(norms)), where=norms != 0)
    return cosine
