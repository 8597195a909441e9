"""No leak through a mask: what is hidden can change without changing one bit of what is visible."""

import pytest
import torch
from torch import Tensor

from pipeline.models import attention_masks
from pipeline.models.stage1 import Stage1Bridge
from pipeline.tokens import Tokens
from tests.reference import qformer as reference
from tests.support.random_bridges import DECODE, SHAPE, random_batch, random_stage1

LENGTHS = [3, 9, 6]  # padded to 9


@pytest.fixture(scope="module")
def bridge() -> Stage1Bridge:
    return random_stage1().requires_grad_(False)


def changed(ids_BL: Tensor, row: int, place: int) -> Tensor:
    ids_BL = ids_BL.clone()
    ids_BL[row, place] = (ids_BL[row, place] + 7) % DECODE
    return ids_BL


def contrastive_outputs(bridge: Stage1Bridge, images: Tensor, text: Tokens) -> Tensor:
    return bridge.embed_text(bridge.qformer.encode_text(text, bridge.weights()))


def matching_outputs(bridge: Stage1Bridge, images: Tensor, text: Tokens) -> Tensor:
    return bridge.match(
        [(bridge.qformer.project_image(images, bridge.weights()), len(text.ids))], text, bridge.weights()
    )


def generation_outputs(bridge: Stage1Bridge, images: Tensor, text: Tokens) -> Tensor:
    weights = bridge.weights()
    _, cache = bridge.qformer.encode_queries(bridge.qformer.project_image(images, weights), weights)
    return text.places().pad(bridge.qformer.predict_tokens(bridge.qformer.decode_text(text, cache, weights)))


@pytest.mark.parametrize("outputs", [contrastive_outputs, matching_outputs])
def test_padding_is_hidden_and_every_token_is_seen(bridge, outputs) -> None:
    batch = random_batch(LENGTHS)
    images, text = batch.pixels_B3SS, batch.target
    before = outputs(bridge, images, text)
    for row, length in enumerate(LENGTHS):
        for place in range(text.ids.shape[1]):
            after = outputs(bridge, images, Tokens(changed(text.ids, row, place), text.is_token))
            same = [torch.equal(after[other], before[other]) for other in range(len(LENGTHS))]
            assert same == [other != row or place >= length for other in range(len(LENGTHS))], (row, place)


def test_generation_sees_itself_and_what_came_before(bridge) -> None:
    batch = random_batch(LENGTHS)
    images, text = batch.pixels_B3SS, batch.target
    before = generation_outputs(bridge, images, text)
    for row, length in enumerate(LENGTHS):
        for place in range(text.ids.shape[1]):
            after = generation_outputs(bridge, images, Tokens(changed(text.ids, row, place), text.is_token))
            for reader in range(length):
                assert torch.equal(after[row, reader], before[row, reader]) == (reader < place), (row, place, reader)
            for other in range(len(LENGTHS)):
                assert other == row or torch.equal(after[other], before[other])


def test_matching_and_generation_see_the_image_and_texts_own_pass_does_not(bridge) -> None:
    batch = random_batch(LENGTHS)
    images, text = batch.pixels_B3SS, batch.target
    other_images = images.clone()
    other_images[1, 4] += 0.5
    for outputs, sees in ((contrastive_outputs, False), (matching_outputs, True), (generation_outputs, True)):
        before, after = outputs(bridge, images, text), outputs(bridge, other_images, text)
        assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [True, not sees, True]


def test_more_padding_changes_nothing(bridge) -> None:
    batch = random_batch(LENGTHS)
    images, text = batch.pixels_B3SS, batch.target
    for outputs in (contrastive_outputs, matching_outputs, generation_outputs):
        short, long = outputs(bridge, images, text), outputs(bridge, images, text.padded_to(32))
        if outputs is generation_outputs:
            long = long[:, : text.ids.shape[1]]
            short, long = short[text.is_token], long[text.is_token]
        torch.testing.assert_close(long, short, rtol=1e-12, atol=1e-12)


def test_masks_are_the_text_rows_of_the_papers_figure() -> None:
    queries, is_token_BL = SHAPE.num_query_tokens, random_batch(LENGTHS).target.is_token
    length = is_token_BL.shape[1]
    for row, real in enumerate(is_token_BL):
        contrastive = attention_masks.text_only(is_token_BL)[row, 0].expand(length, -1)
        assert torch.equal(contrastive, reference.contrastive_mask(queries, real)[queries:, queries:])
        matching = attention_masks.queries_and_text(queries, is_token_BL)[row, 0].expand(queries + length, -1)
        assert torch.equal(matching, reference.matching_mask(queries, real))
        generation = attention_masks.causal_after_queries(queries, is_token_BL)[row, 0]
        assert torch.equal(generation, reference.generation_mask(queries, real)[queries:])
