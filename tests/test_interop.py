"""Directories as they are found: shards, old names, half precision, damage, foreign variants."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from reference import (
    FAMILIES,
    VOCABULARY,
    classifier_error,
    encoder_errors,
    padded_and_packed,
    reference_config,
    reference_model,
    reload_theirs,
    save,
    transformers,
)
from safetensors.torch import load_file, save_file

from firth.errors import CheckpointError, ConfigError, ResourceError, UnsupportedError
from firth.interop.huggingface import (
    load_model,
    loads_in_transformers,
    save_model,
    stock_family,
    stock_head,
)
from firth.models.bert import MODERN, Bert, BertConfig
from firth.models.mix import SequenceHead

SHAPE = BertConfig(
    vocab_size=61, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=20, max_length=40
)
MODERN_SHAPE = replace(SHAPE, **MODERN)  # type: ignore[arg-type]


@pytest.fixture
def bert(tmp_path):
    """A saved masked LM of theirs, and its directory."""
    model = reference_model("MaskedLM", reference_config("bert"))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def edit_settings(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same_weights(ours, theirs, *, without: str = "nothing") -> bool:
    state = theirs.state_dict()
    kept = {k: v for k, v in ours.state_dict().items() if not k.startswith(without)}
    return len(kept) > 20 and all(torch.equal(tensor, state[k]) for k, tensor in kept.items())


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


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_alone(family, tmp_path, caplog):
    """Names without a prefix; the masked-LM head is drawn, and a warning says so."""
    config = reference_config(family)
    reference_model("", config).save_pretrained(tmp_path)
    prefix = {"modernbert": "model."}.get(family, f"{family}.")
    assert not any(name.startswith(prefix) for name in load_file(tmp_path / "model.safetensors"))
    with caplog.at_level(logging.INFO):
        loaded = load_model(tmp_path)
    assert [r.levelname for r in caplog.records if "random weights" in r.message] == ["WARNING"]
    assert ("not used" in caplog.text) == (family == "roberta")  # its pooler
    assert not loaded.lm_head
    assert (loaded.model.pooler is not None) == (family == "bert")
    _, packed = padded_and_packed()
    with torch.no_grad():
        head = loaded.model.head
        assert 0.015 < float(head.dense.weight.std()) < 0.025 or family == "modernbert"
        assert torch.equal(head.norm.weight, torch.ones(24))
        theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
        ids = packed.input_ids[:30]
        wanted = theirs(input_ids=ids[None]).last_hidden_state[0]
        assert (loaded.model(packed).last[:30] - wanted).abs().max() <= 1e-5


def test_pretraining_class(tmp_path, caplog):
    reference_model("PreTraining", reference_config("bert")).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = load_model(tmp_path)
    assert "cls.seq_relationship.bias, cls.seq_relationship.weight" in caplog.text
    assert loaded.lm_head
    assert loaded.model.pooler is not None
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded.model.pooler.weight, saved["bert.pooler.dense.weight"])
    assert torch.equal(loaded.model.head.bias, saved["cls.predictions.bias"])


def test_names_of_old_files(bert):
    """gamma and beta, buffers, and tied tensors written twice, as in bert-base-uncased."""
    model, directory = bert

    def old(tensors):
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for name, tensor in tensors.items()
        }
        return {
            **renamed,
            "bert.embeddings.position_ids": torch.arange(40)[None],
            "cls.predictions.decoder.weight": tensors[
                "bert.embeddings.word_embeddings.weight"
            ].clone(),
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
        }

    wanted = load_model(directory).model
    edit_tensors(directory, old)
    loaded = load_model(directory)
    assert same_weights(loaded.model, wanted)
    assert max(encoder_errors(loaded, model).values()) <= 1e-5


def test_shards(bert):
    model, directory = bert
    wanted = load_model(directory).model
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert same_weights(load_model(directory).model, wanted)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_model(directory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(bert, dtype):
    model, directory = bert
    model.to(dtype).save_pretrained(directory)
    loaded = load_model(directory)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    tokens = model.bert.embeddings.word_embeddings.weight.float()
    assert torch.equal(loaded.model.embeddings.tokens.weight, tokens)


@pytest.mark.parametrize("name", ["XLMRoberta", "Camembert"])
def test_roberta_under_other_names(name, tmp_path):
    config = getattr(transformers, f"{name}Config")(**reference_config("roberta").to_diff_dict())
    model = reference_model("MaskedLM", config)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] != "roberta"
    assert loaded.family == "roberta"
    assert max(encoder_errors(loaded, model).values()) <= 1e-5


def test_roberta_positions_follow_the_padding_token(tmp_path):
    model = reference_model("MaskedLM", reference_config("roberta", pad_token_id=4))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.model.config.position_offset, loaded.model.config.max_length) == (5, 35)
    padded, packed = padded_and_packed()
    padded["input_ids"][padded["attention_mask"] == 0] = 4
    with torch.no_grad():
        scores = loaded.model.logits(loaded.model(packed).last)
        wanted = model(**padded).logits[padded["attention_mask"].bool()]
    assert (scores - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("form", ["transformers 4", "transformers 5"])
def test_modernbert_layers_in_both_forms_of_settings(form, tmp_path):
    types = ["full_attention" if i % 2 == 0 else "sliding_attention" for i in range(5)]
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
    }
    config = reference_config("modernbert", layer_types=types, rope_parameters=rope)
    model = reference_model("MaskedLM", config)
    model.save_pretrained(tmp_path)
    if form == "transformers 4":
        path = tmp_path / "config.json"
        settings = json.loads(path.read_text())
        del settings["layer_types"], settings["rope_parameters"]
        settings |= {"global_attn_every_n_layers": 2}
        settings |= {"global_rope_theta": 5000.0, "local_rope_theta": 70.0}
        path.write_text(json.dumps(settings))
    loaded = load_model(tmp_path)
    config = loaded.model.config
    assert (config.local_window, config.global_every) == (4, 2)
    assert (config.rotary_base, config.rotary_base_global) == (70.0, 5000.0)
    assert max(encoder_errors(loaded, model).values()) <= 1e-5


def test_dropout_of_two_rates_is_reported(bert, caplog):
    _, directory = bert
    edit_settings(directory, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.0)
    assert load_model(directory).model.config.dropout == 0.2
    assert "'attention_probs_dropout_prob': 0.0" in caplog.text


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


def test_a_stale_block_does_not_count(tmp_path):
    model = Bert(SHAPE, pooler=False)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    theirs = reload_theirs(tmp_path, "MaskedLM")
    theirs.resize_token_embeddings(70, mean_resizing=False)
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.model.config == replace(SHAPE, vocab_size=70)
    assert torch.equal(loaded.model.embeddings.tokens.weight[:61], model.embeddings.tokens.weight)


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


def test_two_unnamed_labels_of_an_old_file(tmp_path):
    model = reference_model("SequenceClassification", reference_config("bert", num_labels=2))
    model.save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    loaded = load_model(tmp_path)
    assert loaded.labels == ("LABEL_0", "LABEL_1")
    assert loaded.problem_type == "single_label_classification"


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
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    assert same_weights(loaded.model, model)
    assert all(torch.equal(v, loaded.head.state_dict()[k]) for k, v in head.state_dict().items())
    _, packed = padded_and_packed()
    with torch.no_grad():
        wanted = head.eval()(model.eval()(packed).last, packed.starts)
        assert torch.equal(loaded.head(loaded.model(packed).last, packed.starts), wanted)


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


# What cannot be read says so.


def test_no_such_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no config\.json"):
        load_model(tmp_path / "nowhere")


def test_a_pickle_is_refused(bert):
    _, directory = bert
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        load_model(directory)


def test_no_weights(bert):
    _, directory = bert
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors$"):
        load_model(directory)


def test_a_cut_file(bert):
    _, directory = bert
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_model(directory)


def test_tensors_that_do_not_fit_are_named(bert):
    _, directory = bert
    query = "bert.encoder.layer.3.attention.self.query.weight"

    def damage(tensors):
        del tensors["bert.embeddings.LayerNorm.bias"]
        return {**tensors, query: torch.zeros(24, 23), "bert.extra": torch.zeros(2)}

    edit_tensors(directory, damage)
    with pytest.raises(CheckpointError) as error:
        load_model(directory)
    message = str(error.value)
    assert message.startswith(str(directory))
    assert "bert.embeddings.LayerNorm.bias is missing" in message
    assert f"{query} has shape (24, 23), expected (24, 24)" in message
    assert "bert.extra is unexpected" in message
    assert message.count(";") == 2


def test_many_wrong_tensors_are_counted(bert):
    _, directory = bert
    edit_tensors(directory, lambda tensors: dict(list(tensors.items())[:5]))
    with pytest.raises(CheckpointError, match=r"and \d+ more$"):
        load_model(directory)


def test_labels_that_are_not_as_many_as_outputs(tmp_path):
    model = reference_model("SequenceClassification", reference_config("bert", num_labels=3))
    model.save_pretrained(tmp_path)
    edit_settings(tmp_path, id2label={"0": "a", "1": "b"})
    with pytest.raises(
        CheckpointError, match=r"classifier\.weight has shape \(3, 24\), expected \(2"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; supported: 'gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("distilbert", {"activation": "relu"}, "activation is 'relu'"),
        ("modernbert", {"norm_bias": True}, "norm_bias"),
        ("modernbert", {"decoder_bias": False}, "decoder_bias"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 5}, "layer_types"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}},
            r"\(yarn\); supported: 'default'",
        ),
        ("bert", {"model_type": "gpt2"}, "model_type is 'gpt2'; supported: bert, roberta"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
    ],
)
def test_variants_that_are_not_supported(family, changes, message, tmp_path):
    reference_model("MaskedLM", reference_config(family)).save_pretrained(tmp_path)
    edit_settings(tmp_path, **changes)
    with pytest.raises(UnsupportedError, match=message) as error:
        load_model(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_setting_that_is_missing(bert):
    _, directory = bert
    settings = json.loads((directory / "config.json").read_text())
    del settings["num_attention_heads"]
    (directory / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"config\.json: no num_attention_heads"):
        load_model(directory)
