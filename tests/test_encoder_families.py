"""RoBERTa, SpanBERT, mBERT and pairs of sentences: files in both directions, sizes, whole runs."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import firth
from firth.adaptation import FineTuning
from firth.interop.huggingface import load_model, save_model, stock_head
from firth.models.bert import SIZES, Bert, BertConfig
from firth.protocols import Batch
from tests.reference import (
    VOCABULARY,
    distance,
    encoder_errors,
    padded_and_packed,
    reference_config,
    reference_model,
    reload_theirs,
    same_weights,
    save,
    transformers,
)

TOLERANCE = 1e-5

SHAPE = BertConfig(
    vocab_size=61,
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    intermediate_size=40,
    max_length=40,
    num_segments=2,
)


@torch.no_grad()
def pretraining_errors(loaded, model) -> dict[str, float]:
    """Errors of the masked-LM scores and of the two scores for a pair."""
    padded, packed = padded_and_packed(segments=model.config.type_vocab_size)
    theirs = model(**padded)
    hidden = loaded.model(packed).last
    real = padded["attention_mask"].bool()
    assert float(theirs.seq_relationship_logits.std()) > 0.1
    return {
        "tokens": distance(loaded.model.logits(hidden), theirs.prediction_logits[real]),
        "pairs": distance(
            loaded.model.pair_logits(hidden, packed.starts), theirs.seq_relationship_logits
        ),
    }


@pytest.mark.parametrize(
    "changes",
    [{}, {"vocab_size": 28_996, "type_vocab_size": 2}, {"vocab_size": 119_547}],
    ids=["bert", "spanbert", "mbert"],
)
def test_pretraining_class_agrees_in_both_directions(changes, tmp_path):
    """The vocabularies of the published cased and multilingual models."""
    model = reference_model("PreTraining", reference_config("bert", **changes))
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    save(tmp_path / "ours", loaded)
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert settings["architectures"] == ["BertForPreTraining"]
    again = reload_theirs(tmp_path / "ours", "PreTraining")
    for theirs in (model, again):
        assert max(pretraining_errors(loaded, theirs).values()) <= TOLERANCE
    ours = load_model(tmp_path / "ours")
    assert ours.model.config == loaded.model.config
    assert same_weights(ours.model, loaded.model)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


@pytest.mark.parametrize("kind", ["", "MaskedLM"])
def test_cased_encoders_agree_in_both_directions(kind, tmp_path):
    """SpanBERT as it is published: BERT with 28,996 entries, an encoder with its pooler."""
    model = reference_model(kind, reference_config("bert", vocab_size=28_996, type_vocab_size=2))
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert not loaded.model.config.pair_head
    assert loaded.lm_head == (kind == "MaskedLM")
    if kind:
        assert max(encoder_errors(loaded, model).values()) <= TOLERANCE
        return
    save(tmp_path / "ours", loaded)
    padded, packed = padded_and_packed(segments=2)
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    real = padded["attention_mask"].bool()
    with torch.no_grad():
        states = loaded.model(packed).last
        for theirs in (model, again):
            assert distance(states, theirs(**padded).last_hidden_state[real]) <= TOLERANCE


def test_the_pair_head_is_read_without_its_class(tmp_path):
    model = Bert(replace(SHAPE, pair_head=True), pooler=False)
    assert model.pooler is not None
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    bare, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(bare.pooler.dense.weight, model.pooler.weight)
    _, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]


def test_heads_that_have_no_place_there_are_left_out(tmp_path):
    """The boundary head everywhere, the pair head beside a classifier and in other families."""
    with_heads = replace(SHAPE, pair_head=True, boundary_places=5)
    model = Bert(with_heads)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    assert load_model(tmp_path).model.config == replace(with_heads, boundary_places=0)
    save_model(
        tmp_path, model, vocabulary=VOCABULARY, firth={}, head=stock_head(with_heads, 3, 0.1)
    )
    reload_theirs(tmp_path, "SequenceClassification")
    assert load_model(tmp_path).model.config == SHAPE
    roberta = replace(with_heads, position_offset=2, num_segments=1)
    save_model(tmp_path, Bert(roberta), vocabulary=VOCABULARY, firth={})
    reload_theirs(tmp_path, "MaskedLM")
    assert load_model(tmp_path).model.config == replace(roberta, pair_head=False, boundary_places=0)


def test_our_own_form_keeps_all_heads(tmp_path):
    model = Bert(replace(SHAPE, pair_head=True, boundary_places=5, gated=True))
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    loaded = load_model(tmp_path)
    assert loaded.family is None
    assert loaded.model.config == model.config
    assert same_weights(loaded.model, model)


def test_fine_tuning_leaves_the_heads_of_pre_training_alone():
    body = Bert(replace(SHAPE, pair_head=True, boundary_places=5))
    network = FineTuning().network(body, stock_head(SHAPE, 2, 0.1), seed=0)
    trained = {name for name, p in network.body.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"embeddings", "layers"}


# Sizes.


def count(*modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "size", "vocab_size", "published"),
    [
        ("bert-nsp", "base", 30_522, 109_482_240),  # 110M
        ("bert-nsp", "large", 30_522, 335_141_888),  # 340M
        ("spanbert", "base", 28_996, 108_310_272),  # 110M
        ("spanbert", "large", 28_996, 333_579_264),  # 340M
        ("roberta", "base", 50_265, 124_645_632),  # 125M
        ("roberta", "large", 50_265, 355_359_744),  # 355M
    ],
)
def test_encoders_have_the_parameters_of_the_published_models(name, size, vocab_size, published):
    """Encoder and pooler, counted by `transformers` too."""
    config = firth.recipe(name, size=size, vocab_size=vocab_size).model
    theirs = "Roberta" if name == "roberta" else "Bert"
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_length + config.position_offset,
        "type_vocab_size": config.num_segments,
    }
    with torch.device("meta"):
        ours = Bert(config)
        reference = getattr(transformers, f"{theirs}Model")(
            getattr(transformers, f"{theirs}Config")(**shape)
        )
    heads = [ours.head, ours.pair_head, ours.boundary_head]
    encoder = count(ours) - count(*(head for head in heads if head is not None))
    assert encoder == count(reference) == published


def test_heads_have_the_parameters_of_the_published_programs():
    config = replace(firth.recipe("bert-nsp", size="base", vocab_size=30_522).model)
    with torch.device("meta"):
        ours = Bert(config)
        theirs = transformers.BertForPreTraining(transformers.BertConfig())
        boundary = Bert(BertConfig(vocab_size=28_996, **SIZES["base"], boundary_places=15))
    assert count(ours) == count(theirs)
    # facebookresearch/SpanBERT, `pair_bert.py`: places, two layers with norms, a bias.
    layers = (2 * 768 + 200) * 768 + 768 + 768 * 768 + 768 + 4 * 768
    assert count(boundary.boundary_head) == 15 * 200 + layers + 28_996


# Whole runs.


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("bert-nsp", "PreTraining"), ("spanbert", "MaskedLM"), ("roberta", "MaskedLM")],
)
def test_a_run_is_a_model_there_and_here(name, class_name, papers, tmp_path):
    chosen = firth.recipe(name, size="tiny", vocab_size=500).with_settings(
        {
            "training.steps": 6,
            "training.evaluate_every": 3,
            "training.batch_tokens": 512,
            "data.max_length": 64,
            "data.valid_tokens": 1024,
        }
    )
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:60], papers[60:80]))
    lm = firth.pretrain(chosen, train, tmp_path / "run", valid=valid, device="cpu")
    assert (tmp_path / "run" / "README.md").read_text().count("Validation perplexity") == 1
    again = reload_theirs(tmp_path / "run", class_name)
    assert type(again).__name__ == ("Roberta" if name == "roberta" else "Bert") + f"For{class_name}"
    text = papers[0][:80]
    ids = torch.from_numpy(lm.tokenizer.encode(text).ids)
    with torch.no_grad():
        output = again(input_ids=ids[None])
    theirs = output.prediction_logits if class_name == "PreTraining" else output.logits
    ours = firth.load(tmp_path / "run", device="cpu", precision="float32").logits([text])[0]
    assert distance(torch.from_numpy(ours.values), theirs[0]) <= TOLERANCE


def test_without_segments_a_pair_is_two_texts_of_the_one_there_is():
    torch.manual_seed(0)
    model = Bert(replace(SHAPE, num_segments=1)).eval()
    batch = Batch(input_ids=torch.arange(5, 15), starts=torch.tensor([0, 10]))
    pair = replace(batch, segments=torch.tensor([0] * 5 + [1] * 5))
    with torch.no_grad():
        assert torch.equal(model(batch).last, model(pair).last)
