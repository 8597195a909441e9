"""Several pairs of one source in one sequence of the language model: [picture][text][picture][text]...

A tokenizer's BOS stands once, before the first text. Each text keeps its end, `language.end_text`. A seq2seq model has
a sequence for each pair: earlier pairs, whole, and then the picture and the text that its encoder reads; EOS once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from pipeline.data.batch import Batch, Collate
from pipeline.data.stream import Sample
from pipeline.tokens import Interleaved, Tokens, pad_tokens

PROMPT, READ, SCORED = 1, 2, 3  # what stands at a place


@dataclass(frozen=True)
class Layout:
    """`pairs` of a sequence at most, each with so many soft prompts; `begin` tokens stand before a causal model's text:
    BOS, where it has one."""

    pairs: int
    num_prompts: int
    begin: int
    seq2seq: bool


def in_sequences(collate: Collate, layout: Layout) -> Collate:
    """The same batches, the samples of a source next to one another, with the sequences that the language model reads.

    Neighbours of a source share a sequence; what is left of a source makes a shorter one.
    """

    def collate_pairs(samples: Sequence[Sample]) -> Batch:
        ordered = sorted(samples, key=lambda sample: sample.source)  # which leaves neighbours neighbours
        return interleave(collate(ordered), [sample.source for sample in ordered], layout)

    return collate_pairs


def interleave(batch: Batch, sources: Sequence[str], layout: Layout) -> Batch:
    """A batch whose samples are ordered by source, with its sequences."""
    ranges = list(_ranges(sources, layout.pairs))
    contexts, targets = _rows(batch.context), _rows(batch.target)
    if layout.seq2seq:
        return replace(batch, interleaved=_for_encoder(contexts, targets, ranges, layout))
    later = [place for first, after in ranges for place in range(first + 1, after)]
    for place in later:
        begun = contexts if contexts[place] else targets
        begun[place] = begun[place][layout.begin :]
    sequences = [[(contexts[place], targets[place]) for place in range(first, after)] for first, after in ranges]
    return replace(
        batch,
        context=pad_tokens(contexts, 0),
        target=pad_tokens(targets, 0),
        interleaved=_interleaved(sequences, ranges, layout),
    )


def _ranges(sources: Sequence[str], most: int) -> Iterator[tuple[int, int]]:
    """The first pair of each sequence, and the one after its last."""
    begin = 0
    for _, same in groupby(sources):
        end = begin + len(list(same))
        for first in range(begin, end, most):
            yield first, min(first + most, end)
        begin = end


def _for_encoder(
    contexts: list[list[int]], targets: list[list[int]], ranges: list[tuple[int, int]], layout: Layout
) -> Interleaved:
    """A sequence for each pair. Of earlier pairs it has context and target without their EOS."""
    whole = [context[:-1] + target[:-1] for context, target in zip(contexts, targets, strict=True)]
    grown = [(first, place + 1) for first, after in ranges for place in range(first, after)]
    sequences: list[list[tuple[list[int], list[int]]]] = [
        [*((whole[place], []) for place in range(first, after - 1)), (contexts[after - 1], [])]
        for first, after in grown
    ]
    return _interleaved(sequences, grown, layout)


def _interleaved(
    sequences: list[list[tuple[list[int], list[int]]]], ranges: list[tuple[int, int]], layout: Layout
) -> Interleaved:
    """Sequences of (text that is read, text that is scored), each after its picture."""
    ids_SM, kinds_SM = [], []
    for sequence in sequences:
        ids: list[int] = []
        kinds: list[int] = []
        for read, scored in sequence:
            ids += [0] * layout.num_prompts + read + scored
            kinds += [PROMPT] * layout.num_prompts + [READ] * len(read) + [SCORED] * len(scored)
        ids_SM.append(ids)
        kinds_SM.append(kinds)
    stands_SM = pad_tokens(kinds_SM, 0).ids
    predicts_SM = torch.zeros_like(stands_SM, dtype=torch.bool)
    predicts_SM[:, :-1] = stands_SM[:, 1:] == SCORED
    return Interleaved(pad_tokens(ids_SM, 0), stands_SM == PROMPT, predicts_SM, tuple(ranges))


def _rows(tokens: Tokens) -> list[list[int]]:
    return [ids[real].tolist() for ids, real in zip(tokens.ids, tokens.is_token, strict=True)]
