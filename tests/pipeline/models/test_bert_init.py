"""A fresh Q-Former starts as BERT: its text pass equals transformers' BertModel, its query FFNs are copies."""

from pathlib import Path

import pytest
import torch

from pipeline.config import QFormer as QFormerSettings
from pipeline.models.build import build_tokenizer, load_bert, qformer_shape
from pipeline.models.qformer import QFormer, TextPath
from pipeline.tokens import Tokens

TEXTS = ["a picture of the dark blue number 7", "red", "", "the colour is light yellow : question ?"]


@pytest.fixture(scope="module")
def settings(towers: Path) -> QFormerSettings:
    return QFormerSettings(bert=str(towers / "bert"), num_query_tokens=4, dropout=0.0)


def fresh(settings: QFormerSettings, text: TextPath) -> QFormer:
    torch.manual_seed(0)
    qformer = QFormer(qformer_shape(settings, image_width=24), text)
    load_bert(qformer, settings)
    return qformer.eval().requires_grad_(False)


def test_cls_of_text_alone_equals_berts(settings: QFormerSettings) -> None:
    from transformers import BertModel

    encoded = build_tokenizer(settings)(TEXTS, padding=True, return_tensors="pt")
    real = encoded.attention_mask.bool()
    qformer = fresh(settings, text="write")
    found = qformer.encode_text(Tokens(encoded.input_ids, real), qformer.weights(torch.nn.LayerNorm(24)))
    bert = BertModel.from_pretrained(settings.bert).eval()
    with torch.no_grad():
        expected = bert(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).last_hidden_state
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-5, atol=1e-5)


def test_the_prediction_head_is_berts(settings: QFormerSettings) -> None:
    from transformers import BertForMaskedLM

    bert, qformer = BertForMaskedLM.from_pretrained(settings.bert).eval(), fresh(settings, text="write")
    rows = torch.randn(2, 3, qformer.shape.width, generator=torch.Generator().manual_seed(0))
    assert qformer.language_head is not None and qformer.text_embeddings is not None
    found = qformer.language_head(rows, qformer.text_embeddings.word.weight)
    with torch.no_grad():
        expected = bert.cls(rows)
    torch.testing.assert_close(found[..., :-1], expected, rtol=1e-5, atol=1e-5)  # [DEC] is one word more


def test_query_ffns_are_berts_and_cross_attention_is_new(settings: QFormerSettings) -> None:
    for text in ("none", "read", "write"):
        qformer = fresh(settings, text)
        state, cross, deviation = qformer.state_dict(), [], qformer.shape.initializer_range
        bert = fresh(settings, text="write").state_dict()
        for name, tensor in state.items():
            if ".query_ffn." in name:
                assert torch.equal(tensor, bert[name.replace("query_ffn", "text_ffn")])
            if ".cross_attention." in name:
                cross.append(name.split(".")[1])
                if name.endswith("query.weight"):
                    assert float(tensor.std()) == pytest.approx(deviation, rel=0.15)
                elif name.endswith("bias"):
                    assert not tensor.any()
        assert sorted(set(cross)) == ["0", "2"]
        assert float(state["query_tokens"].std()) == pytest.approx(deviation, rel=0.25)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_model_of_another_kind_is_one_line(kind: str, towers: Path) -> None:
    with pytest.raises(ValueError, match=rf"^qformer.bert '.*/{kind}': is a model of type '{kind}'.*; name a BERT"):
        qformer_shape(QFormerSettings(bert=str(towers / kind)), image_width=24)


def test_dec_is_the_tokenizers_last_id_and_begins_no_text(settings: QFormerSettings) -> None:
    tokenizer = build_tokenizer(settings)
    assert tokenizer.bos_token == "[DEC]" and tokenizer.bos_token_id == len(tokenizer) - 1
    assert qformer_shape(settings, 24).vocabulary == len(tokenizer)
    ids = tokenizer(["red picture"]).input_ids[0]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id and len(ids) == 4
