"""Directories as they are found: shards, old names, half precision, damage, foreign variants."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import firth
from firth.errors import CheckpointError, UnsupportedError
from firth.interop.huggingface import load_model, save_model
from firth.models import Bert
from tests.reference import (
    FAMILIES,
    VOCABULARY,
    edit_settings,
    encoder_errors,
    padded_and_packed,
    reference_config,
    reference_model,
    same_weights,
    transformers,
)


@pytest.fixture
def bert(tmp_path):
    """A saved masked LM of theirs, and its directory."""
    model = reference_model("MaskedLM", reference_config("bert"))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


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
    assert "not used" not in caplog.text
    assert loaded.lm_head
    assert loaded.model.config.pair_head
    assert loaded.model.pooler is not None
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded.model.pooler.weight, saved["bert.pooler.dense.weight"])
    assert torch.equal(loaded.model.head.bias, saved["cls.predictions.bias"])
    assert torch.equal(loaded.model.pair_head.weight, saved["cls.seq_relationship.weight"])


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


def test_two_unnamed_labels_of_an_old_file(tmp_path):
    model = reference_model("SequenceClassification", reference_config("bert", num_labels=2))
    model.save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    loaded = load_model(tmp_path)
    assert loaded.labels == ("LABEL_0", "LABEL_1")
    assert loaded.problem_type == "single_label_classification"


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
        ("modernbert", {"local_attention": 1}, "local_attention is 1, expected at least 2"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}},
            r"\(yarn\); supported: 'default'",
        ),
        ("bert", {"model_type": "bloom"}, "model_type is 'bloom'; supported: bert, roberta"),
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


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_alone_stays_one_when_it_is_saved(family, tmp_path):
    reference_model("", reference_config(family)).save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    ours, again = tmp_path / "ours", tmp_path / "own"
    save_model(ours, loaded.model, vocabulary=VOCABULARY, firth={}, lm_head=loaded.lm_head)
    assert not load_model(ours).lm_head
    assert load_model(ours).firth == {}
    (name,) = json.loads((ours / "config.json").read_text())["architectures"]
    theirs = transformers.AutoModel.from_pretrained(ours).eval()
    assert type(theirs).__name__ == name
    _, packed = padded_and_packed()
    with torch.no_grad():
        wanted = theirs(input_ids=packed.input_ids[:30][None]).last_hidden_state[0]
        assert (loaded.model(packed).last[:30] - wanted).abs().max() <= 1e-5
    save_model(
        again, loaded.model, vocabulary=VOCABULARY, firth={}, own_form=True, lm_head=loaded.lm_head
    )
    assert not load_model(again).lm_head


@pytest.mark.parametrize("family", FAMILIES)
def test_an_output_matrix_of_its_own_is_refused(family, tmp_path):
    model = reference_model("MaskedLM", reference_config(family))
    model.save_pretrained(tmp_path)
    output = {
        "bert": "cls.predictions.decoder.weight",
        "roberta": "lm_head.decoder.weight",
        "distilbert": "vocab_projector.weight",
        "modernbert": "decoder.weight",
    }[family]
    table = model.get_input_embeddings().weight.detach().clone()
    edit_tensors(tmp_path, lambda tensors: {**tensors, output: table.clone()})
    assert load_model(tmp_path).lm_head
    edit_tensors(tmp_path, lambda tensors: {**tensors, output: table + 1})
    with pytest.raises(UnsupportedError, match="numbers of its own"):
        load_model(tmp_path)


@pytest.mark.parametrize(("family", "head"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_the_second_name_of_the_output_bias(family, head, tmp_path):
    model = reference_model("MaskedLM", reference_config(family))
    model.save_pretrained(tmp_path)
    first, second = f"{head}.bias", f"{head}.decoder.bias"
    bias = dict(model.named_parameters())[first].detach() + 1
    edit_tensors(tmp_path, lambda tensors: {**tensors, second: bias})
    with pytest.raises(UnsupportedError, match=f"{second} has numbers of its own"):
        load_model(tmp_path)
    edit_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != first})
    loaded = load_model(tmp_path).model
    assert isinstance(loaded, Bert)
    assert torch.equal(loaded.head.bias, bias)


@pytest.mark.parametrize(
    ("names", "labels"),
    [({0: 3, 1: 5}, ("3", "5")), ({1: "a", 2: "b"}, None), ({0: "a", 1: "a"}, None)],
)
def test_names_of_labels(names, labels, tmp_path):
    reference_model("SequenceClassification", reference_config("bert")).save_pretrained(tmp_path)
    edit_settings(tmp_path, id2label=names)
    if labels is None:
        with pytest.raises(CheckpointError, match=r"id2label is .* each number from 0 to 1"):
            load_model(tmp_path)
    else:
        assert load_model(tmp_path).labels == labels


def test_a_regression_of_several_values_is_refused(tmp_path):
    config = reference_config("bert", num_labels=3, problem_type="regression")
    reference_model("SequenceClassification", config).save_pretrained(tmp_path)
    firth.Tokenizer.train(["the tide turns"] * 3, "wordpiece", 100).save(tmp_path)
    with pytest.raises(UnsupportedError, match="regression of 3 values"):
        firth.load(tmp_path)
