"""Stage 1's step: a micro batch to its three losses, over all ranks (paper, section 3.2).

Shapes: B pairs a rank, N = W*B pairs of all ranks, Q queries, L tokens, P image tokens, I image width, E projection.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Objectives
from pipeline.data.batch import Batch
from pipeline.distributed import collectives
from pipeline.models.precision import autocast
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.vision import VisionTower
from pipeline.objectives import contrastive, generation, matching
from pipeline.tokens import Tokens, in_turn, stack_tokens, true_places
from pipeline.training.faults import LossScale
from pipeline.training.task import StepPlace, Towers

WRITTEN = 20  # tokens of a text of `_write`


class Stage1Task(nn.Module):
    """The bridge is the only submodule: a frozen image encoder stays outside the engine."""

    def __init__(
        self,
        bridge: Stage1Bridge,
        vision: VisionTower | None,
        settings: Objectives,
        decode_token_id: int,
        precision: str,
    ) -> None:
        super().__init__()
        self.bridge, self.settings, self.decode_token_id = bridge, settings, decode_token_id
        self.precision = precision
        self.towers, self.loss_scale = Towers(vision), LossScale()
        self.itg_loss_sums = generation.itg_loss_sums  # may be compiled

    @staticmethod
    def num_scored_tokens(batch: Batch) -> int:
        """Tokens that ITG predicts: all but the first of each text."""
        return batch.target.num_real() - len(batch.target.ids)

    def forward(self, batch: Batch, place: StepPlace | None) -> dict[str, Tensor]:
        """The losses, `loss` their weighted sum. The mean over ranks and micro batches is the joined batch's loss.

        With `itg_weight` 0, ITG is not computed, and its head gets no gradient (paper, Table 6). Without a place there
        is no loss: only `texts`, what ITG's head writes about the pictures.
        """
        with autocast(batch.pixels_B3SS.device.type, self.precision):  # inside: DeepSpeed switches an outer one off
            return {"texts": self._write(batch)} if place is None else self._losses(batch, place)

    def _write(self, batch: Batch) -> Tensor:
        """The likeliest token after [DEC], then the one after that: int64 [B, WRITTEN]. Whatever follows [SEP] is no
        text. Every rank does the same passes, as ZeRO-3 gathers weights in each."""
        qformer, weights = self.bridge.qformer, self.bridge.weights()
        image = qformer.project_image(self.towers.image_tokens(batch, self.bridge.vision), weights)
        _, query_cache = qformer.encode_queries(image, weights)
        ids_BL = torch.full_like(batch.image_ids_B[:1], self.decode_token_id).expand(len(batch.pixels_B3SS), 1)
        for _ in range(WRITTEN):
            text = Tokens(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), ids_BL.numel())
            rows_BLD = torch.unflatten(qformer.decode_text(text, query_cache, weights), 0, ids_BL.shape)
            ids_BL = torch.cat([ids_BL, qformer.predict_tokens(rows_BLD[:, -1]).argmax(dim=1, keepdim=True)], dim=1)
        return ids_BL[:, 1:]

    def _losses(self, batch: Batch, place: StepPlace) -> dict[str, Tensor]:
        image_BPI = self.towers.image_tokens(batch, self.bridge.vision)
        text = _padded(batch.target, batch.target.ids.shape[1])
        qformer, weights = self.bridge.qformer, self.bridge.weights()
        plain_BPI = qformer.plain_image(image_BPI, weights)
        image = qformer.project_plain(plain_BPI, weights)
        query_BQD, query_cache = qformer.encode_queries(image, weights)
        written = self._to_write(text) if self.settings.itg_weight else None
        cls_BD, *written_TD = qformer.encode_texts(text, written, query_cache, weights)
        image_BQE, text_BE = self.bridge.embed_queries(query_BQD), self.bridge.embed_text(cls_BD)

        all_texts_NE = collectives.gather_rows(text_BE)
        all_images_NQE = collectives.gather_rows(image_BQE)
        image_to_text_BN = contrastive.similarities(image_BQE, all_texts_NE)
        text_to_image_BN = contrastive.similarities(all_images_NQE, text_BE).T
        ids_N = collectives.gather_rows(batch.image_ids_B)
        first_row = place.rank * len(image_BPI)
        smoothing, dtype = self.settings.label_smoothing, image_to_text_BN.dtype
        targets_BN = contrastive.targets(batch.image_ids_B, ids_N, first_row, smoothing, dtype)
        temperature = self.bridge.temperature
        itc = contrastive.itc_loss(image_to_text_BN, text_to_image_BN, temperature, targets_BN)

        same_BN = batch.image_ids_B[:, None] == ids_N[None, :]
        texts_B, images_B = self._draw_negatives(image_to_text_BN, text_to_image_BN, same_BN, place)
        longest = _padded(batch.target, place.longest_target)  # the same length on every rank
        negative_ids = collectives.gather_rows(longest.ids)[texts_B]
        negative_is_token = collectives.gather_rows(longest.is_token)[texts_B]
        exchange = collectives.start_exchange(images_B, negative_is_token.sum())
        factors, generated = self.settings, dict[str, Tensor]()
        if written:  # here: so the device works while the host waits
            itg, itg_nll = self._score(written, *written_TD)
            generated = {"itg_loss": itg * place.token_weight, "itg_nll": itg_nll * place.token_weight}
        if image_BPI.requires_grad:  # gradients go back to their ranks, and add up in the encoder's number format
            negative_BPI = qformer.plain_image(exchange.rows(image_BPI), weights)
        else:
            negative_BPI = exchange.rows(plain_BPI)
        negative_image = qformer.project_plain(negative_BPI, weights)
        negatives = Tokens(negative_ids, negative_is_token, exchange.number)
        images = [(image, 2 * len(image_BPI)), (negative_image, len(image_BPI))]
        # The pairs: each (image, text) and (image, negative text) side by side, then all (negative image, text).
        texts = stack_tokens([in_turn(longest, negatives), longest])
        pair_logits_M2 = self.bridge.match(images, texts, weights)
        labels_M = matching.labels(same_BN)
        itm = matching.itm_loss(pair_logits_M2, labels_M)
        loss = factors.itc_weight * itc + factors.itm_weight * itm
        if generated:
            loss = loss + factors.itg_weight * generated["itg_loss"]
        return {
            "loss": loss,
            "itc_loss": itc,
            "itm_loss": itm,
            **generated,
            "itc_accuracy": contrastive.in_batch_accuracy(image_to_text_BN, first_row),
            "itm_accuracy": matching.itm_accuracy(pair_logits_M2, labels_M),
            "temperature": temperature[0].detach().clone(),  # the step to come changes it
        }

    def _draw_negatives(
        self, image_to_text_BN: Tensor, text_to_image_BN: Tensor, same_BN: Tensor, place: StepPlace
    ) -> tuple[Tensor, Tensor]:
        """For each pair a hard negative text and image of all ranks, as rows of the joined batch: int64 [B] each."""
        rows, columns = image_to_text_BN.shape
        generator = torch.Generator(device=same_BN.device).manual_seed(place.negatives_seed)
        # Drawn for the joined batch on every rank alike: no number depends on how many ranks there are.
        uniform_2NN = torch.rand((2, columns, columns), generator=generator, device=same_BN.device)
        own = slice(place.rank * rows, (place.rank + 1) * rows)
        temperature, rule = self.bridge.temperature.detach(), self.settings.negatives
        texts = matching.hard_negatives(image_to_text_BN.detach() / temperature, same_BN, uniform_2NN[0, own], rule)
        images = matching.hard_negatives(text_to_image_BN.detach() / temperature, same_BN, uniform_2NN[1, own], rule)
        return texts, images

    def _to_write(self, text: Tokens) -> Tokens:
        """What ITG reads: [CLS] becomes [DEC]."""
        ids_BL = torch.cat([torch.full_like(text.ids[:, :1], self.decode_token_id), text.ids[:, 1:]], dim=1)
        return Tokens(ids_BL, text.is_token, text.count)

    def _score(self, written: Tokens, rows_TD: Tensor) -> tuple[Tensor, Tensor]:
        """ITG's summed loss, with smoothing, and without (that one is only logged; it has no gradient)."""
        # Only rows with a next token are scored: all but one of each text.
        has_next = functional.pad(written.is_token[:, 1:], (0, 1))
        count = None if written.count is None else written.count - len(written.ids)
        scored = true_places(has_next, count).flat_R
        rows_SD = rows_TD.index_select(0, written.is_token.flatten().cumsum(0)[scored] - 1)
        logits_SV = self.bridge.qformer.predict_tokens(rows_SD)
        labels_S = written.ids.flatten()[scored + 1]
        return self.itg_loss_sums(logits_SV, labels_S, self.settings.label_smoothing)


def _padded(text: Tokens, length: int) -> Tokens:
    """Padding to a multiple of 8, for which GPUs' attention with a mask needs no copies."""
    return text.padded_to(-(-length // 8) * 8)
