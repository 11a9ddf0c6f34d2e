"""What `save_model` writes: in which form, with which labels, and what comes back."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from firth.errors import ConfigError, ResourceError
from firth.interop.huggingface import (
    load_model,
    loads_in_transformers,
    save_model,
    stock_family,
    stock_head,
)
from firth.models.bert import Bert, BertConfig, modern
from firth.models.mix import SequenceHead
from tests.reference import (
    FAMILIES,
    VOCABULARY,
    classifier_error,
    padded_and_packed,
    reference_config,
    reference_model,
    reload_theirs,
    same_weights,
    save,
    transformers,
)

SHAPE = BertConfig(
    vocab_size=61, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=20, max_length=40
)
MODERN_SHAPE = modern(SHAPE)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "bert"),
        ({"num_segments": 1, "norm_eps": 1e-5}, "bert"),
        ({"position_offset": 2, "num_segments": 1}, "roberta"),
        ({"num_segments": 0}, "distilbert"),
        ({"num_segments": 0, "norm_eps": 1e-5}, None),
        ({"num_segments": 0, "position_offset": 2}, None),
        ({"activation": "relu"}, None),
        ({"gated": True}, None),
        ({"bias": False}, None),
        ({"local_window": 8}, None),
        ({"positions": "rotary"}, None),
        ({"norm": "pre"}, None),
    ],
)
def test_stock_family_of_changed_bert(changes, family):
    assert stock_family(replace(SHAPE, **changes)) == family


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "modernbert"),
        ({"local_window": 0}, "modernbert"),
        ({"bias": True}, None),
        ({"gated": False}, None),
        ({"positions": "learned"}, None),
        ({"num_segments": 2}, None),
        ({"norm": "post"}, None),
    ],
)
def test_stock_family_of_changed_modernbert(changes, family):
    assert stock_family(replace(MODERN_SHAPE, **changes)) == family


def test_loads_in_transformers():
    roberta = replace(SHAPE, position_offset=2, num_segments=1)
    distilbert = replace(SHAPE, num_segments=0)
    for config in (SHAPE, roberta, distilbert, MODERN_SHAPE):
        assert loads_in_transformers(config, None, VOCABULARY)
        assert loads_in_transformers(config, stock_head(config, 3, 0.1), VOCABULARY)
        assert not loads_in_transformers(
            config, stock_head(config, 3, 0.1, pooling="max"), VOCABULARY
        )
    # Their positions start after the id of the padding token, which is 1 in VOCABULARY.
    assert not loads_in_transformers(roberta, None, replace(VOCABULARY, pad=0))
    assert loads_in_transformers(
        replace(roberta, position_offset=1), None, replace(VOCABULARY, pad=0)
    )
    assert not loads_in_transformers(SHAPE, stock_head(distilbert, 3, 0.1), VOCABULARY)
    assert not loads_in_transformers(SHAPE, stock_head(SHAPE, 3, 0.1, pooling="mean"), VOCABULARY)
    assert loads_in_transformers(
        MODERN_SHAPE, stock_head(MODERN_SHAPE, 3, 0.1, pooling="mean"), VOCABULARY
    )
    assert not loads_in_transformers(MODERN_SHAPE, stock_head(SHAPE, 3, 0.1), VOCABULARY)


# Their directory, changed there after we had written it.


def test_saved_again_by_transformers(tmp_path):
    """Our block travels along; a fresh model with the same weights comes back."""
    for config in (SHAPE, MODERN_SHAPE, replace(MODERN_SHAPE, local_window=0)):
        model = Bert(config, pooler=False)
        save_model(tmp_path, model, vocabulary=VOCABULARY, firth={"seed": 4})
        reload_theirs(tmp_path, "MaskedLM").save_pretrained(tmp_path)
        loaded = load_model(tmp_path)
        assert loaded.firth == {"seed": 4}
        assert same_weights(loaded.model, model)
        if config == SHAPE:
            assert loaded.model.config == config


def test_a_stale_block_does_not_count(tmp_path):
    model = Bert(SHAPE, pooler=False)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    theirs = reload_theirs(tmp_path, "MaskedLM")
    theirs.resize_token_embeddings(70, mean_resizing=False)
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.model.config == replace(SHAPE, vocab_size=70)
    assert torch.equal(loaded.model.embeddings.tokens.weight[:61], model.embeddings.tokens.weight)


def test_a_pooler_that_has_no_place_there_is_left_out(tmp_path):
    roberta = replace(SHAPE, position_offset=2, num_segments=1)
    for config in (roberta, replace(SHAPE, num_segments=0)):
        model = Bert(config)
        assert model.pooler is not None
        save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
        reload_theirs(tmp_path, "MaskedLM")
        assert load_model(tmp_path).model.pooler is None


# Heads and labels.


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_and_problem_types(family, tmp_path):
    labels = {0: "non", 1: "peut-être", 2: "oui"}
    config = reference_config(family, id2label=labels, problem_type="multi_label_classification")
    model = reference_model("SequenceClassification", config)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.labels == ("non", "peut-être", "oui")
    assert loaded.problem_type == "multi_label_classification"
    assert not loaded.lm_head
    save(tmp_path / "ours", loaded)
    again = reload_theirs(tmp_path / "ours", "SequenceClassification")
    assert again.config.id2label == labels
    assert again.config.label2id == {name: i for i, name in labels.items()}
    assert again.config.problem_type == "multi_label_classification"
    assert classifier_error(loaded, again) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_regression_and_head_dropout(family, tmp_path):
    key = "seq_classif_dropout" if family == "distilbert" else "classifier_dropout"
    config = reference_config(family, num_labels=1, **{key: 0.35})
    reference_model("SequenceClassification", config).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.head is not None
    assert (loaded.labels, loaded.problem_type) == ((), "regression")
    assert loaded.head.dropout.rate == 0.35
    save(tmp_path, loaded)
    again = load_model(tmp_path)
    assert again.head is not None
    assert (again.labels, again.problem_type) == ((), "regression")
    assert again.head.dropout.rate == 0.35
    theirs = reload_theirs(tmp_path, "SequenceClassification").config
    assert (getattr(theirs, key), theirs.num_labels) == (0.35, 1)


def test_too_few_labels(tmp_path):
    head = stock_head(SHAPE, 3, 0.1)
    with pytest.raises(ConfigError, match="2 labels for a head of 3 outputs"):
        save_model(
            tmp_path, Bert(SHAPE), vocabulary=VOCABULARY, firth={}, head=head, labels=("a", "b")
        )
    assert not any(tmp_path.iterdir())


# Our own form.


@pytest.mark.parametrize("change", [{"gated": True, "activation": "relu"}, {"norm": "pre"}, {}])
def test_own_form_keeps_everything(change, tmp_path):
    """Shapes or heads of no stock class: all weights, both heads and the pooler, bit for bit."""
    torch.manual_seed(0)
    model = Bert(replace(SHAPE, **change))
    head = SequenceHead(16, 3, activation="gelu", norm_eps=1e-6, dropout=0.25, pooling="max")
    with torch.no_grad():
        for parameter in [*model.parameters(), *head.parameters()]:
            parameter.normal_()
    save_model(
        tmp_path,
        model,
        vocabulary=VOCABULARY,
        firth={"task": {"type": "Classification"}},
        head=head,
        labels=("a", "b", "c"),
        problem_type="single_label_classification",
    )
    loaded = load_model(tmp_path)
    assert loaded.family is None
    assert loaded.lm_head
    assert loaded.model.config == model.config
    assert loaded.firth == {"task": {"type": "Classification"}}
    assert loaded.labels == ("a", "b", "c")
    assert loaded.problem_type == "single_label_classification"
    assert loaded.head is not None
    assert same_weights(loaded.model, model)
    assert same_weights(loaded.head, head)
    _, packed = padded_and_packed()
    with torch.no_grad():
        wanted = head.eval()(model.eval()(packed).last, packed.starts)
        assert torch.equal(loaded.head(loaded.model(packed).last, packed.starts), wanted)


def test_own_form_of_a_stock_shape_on_request(tmp_path):
    model, head = Bert(SHAPE), stock_head(SHAPE, 2, 0.1)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={}, head=head, own_form=True)
    with pytest.raises(ValueError, match="firth"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.family is None
    assert loaded.head is not None
    assert same_weights(loaded.model, model)
    assert same_weights(loaded.head, head)


def test_weights_are_saved_in_float32(tmp_path):
    model = Bert(SHAPE, pooler=False).to(torch.bfloat16)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    saved = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert reload_theirs(tmp_path, "MaskedLM").dtype == torch.float32


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    model = Bert(SHAPE, pooler=False)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={"run": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(ResourceError, match=r"model\.safetensors.*No space left"):
        save_model(tmp_path, Bert(SHAPE), vocabulary=VOCABULARY, firth={"run": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
