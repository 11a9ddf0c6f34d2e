"""Recipes: the papers' sizes, and settings laid over them."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import firth
from firth.errors import ConfigError
from firth.models import Bert, build
from firth.protocols import Batch
from firth.recipes import RECIPES
from firth.training import BUDGETS, SGD


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("tiny", 4_385_920),
        ("mini", 11_170_560),
        ("small", 28_763_648),
        ("medium", 41_373_184),
        ("base", 109_482_240),
        ("large", 335_141_888),
    ],
)
def test_sizes_have_the_parameters_of_the_published_models(size, parameters):
    """Devlin et al. 2019, section 3: 110M and 340M; Turc et al. 2019, table 1: 4.4M to 41.7M."""
    config = firth.recipe("bert", size=size, vocab_size=30_522).model
    with torch.device("meta"):
        model = Bert(config)
    head = {id(p) for p in model.head.parameters()}
    assert sum(p.numel() for p in model.parameters() if id(p) not in head) == parameters


@pytest.mark.parametrize(
    ("name", "words", "parameters"),
    [
        ("word2vec", 50_000, 2 * 50_000 * 256),  # input and output vectors
        ("word2vec", 60_000, 2 * 60_000 * 256),
        ("glove", 50_000, 50_000 * 256),  # their sum
        ("fasttext", 50_000, (2 * 50_000 + 200_000) * 256),
    ],
)
def test_word_vectors_are_tables(name, words, parameters):
    config = firth.recipe(name, vocab_size=words).model
    with torch.device("meta"):
        model = build(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_what_is_not_given_is_the_recipes_own():
    merity = firth.recipe("awd-lstm-2018", size=None, vocab_size=None).model
    assert (merity.hidden_size, merity.vocab_size) == (1150, 33_280)
    assert firth.recipe("word2vec", vocab_size=9000).model.vocab_size == 9000


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"training.optimizer": "Muon", "training.optimizer.lr": 0.01}, "training.optimizer.type"),
        ({"training": 5}, "training"),
    ],
)
def test_a_group_of_settings_is_no_value(settings, found):
    with pytest.raises(ConfigError, match=found):
        firth.recipe("gpt").with_settings(settings)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_record(name):
    chosen = firth.recipe(name)
    assert chosen.with_settings({}) == chosen
    assert chosen.name == name


def test_settings_are_laid_over_by_name_or_nested():
    chosen = firth.recipe("bert")
    dotted = chosen.with_settings({"training.clip": 0.5, "model.dropout": 0.2})
    nested = chosen.with_settings({"training": {"clip": 0.5}, "model": {"dropout": 0.2}})
    assert dotted == nested
    assert (dotted.training.clip, dotted.model.dropout) == (0.5, 0.2)
    assert replace(dotted.training, clip=chosen.training.clip) == chosen.training


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_takes_the_place_of_the_one_before(budget):
    training = firth.recipe("bert").with_settings({f"training.{budget}": 7}).training
    assert {name: getattr(training, name) for name in BUDGETS if getattr(training, name)} == {
        budget: 7
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"training.stepz": 1}, "did you mean 'steps'"),
        ({"training.steps": "many"}, "expected int"),
        ({"training.steps": 5, "training.tokens": 5}, "one budget"),
        ({"training.optimizer.type": "Adamw"}, "AdamW"),
        ({"data.max_length": 1000}, "model.max_length"),
    ],
)
def test_wrong_settings_are_refused(settings, found):
    with pytest.raises(ConfigError, match=found):
        firth.recipe("bert").with_settings(settings)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("bert", {"objective.type": "SentencePairs"}, "model.pair_head to true"),
        ("gpt2", {"objective.type": "SentencePairs"}, "SentencePairs trains BertConfig"),
        ("bert", {"objective.type": "SpanBoundary"}, "model.boundary_places to 15"),
        ("bert-nsp", {"data.packing": "full"}, "data.packing to documents"),
        ("bert-nsp", {"model.num_segments": 1}, "num_segments 2"),
        ("bert-nsp", {"objective.weight": -1.0}, r"weight is -1\.0"),
        ("bert", {"objective.units": "words"}, "did you mean 'word'"),
        ("gpt", {"model.bidirectional": True}, "reads from left to right"),
    ],
)
def test_objectives_that_a_model_cannot_learn_are_refused(name, settings, found):
    with pytest.raises(ConfigError, match=found):
        firth.recipe(name).with_settings(settings)


def test_the_settings_of_masking_inside_another_objective():
    chosen = firth.recipe("bert-nsp").with_settings(
        {"objective.masked.units": "word", "objective.kind": "order"}
    )
    assert (chosen.objective.masked.units, chosen.objective.kind) == ("word", "order")
    assert chosen.objective.masked.rate == 0.15


@pytest.mark.parametrize(
    ("name", "setting", "idle"),
    [
        ("bert", {"model.rotary_base": 5e5}, True),
        ("bert", {"model.global_every": 2}, True),
        ("bert", {"model.position_offset": 2}, False),
        ("modern-bert", {"model.position_offset": 2}, True),
        ("modern-bert", {"model.rotary_base_global": 5e5}, False),
        ("modern-bert", {"model.local_window": 0, "model.rotary_base_global": 5e5}, True),
        ("modern-bert", {"objective.final_rate": 0.3}, True),
        ("modern-bert", {"objective.final_rate": 0.2}, False),
        ("bert", {"model.pair_head": True}, True),
        ("bert-nsp", {"model.pair_head": True}, False),
        ("bert", {"model.boundary_places": 9}, True),
        ("spanbert", {"model.boundary_places": 9}, False),
        ("transformer", {"training.schedule.floor": 0.1}, True),
        ("bert", {"training.schedule.floor": 0.1}, False),
        ("bert", {"training.schedule.decay": 0.1}, True),
        ("gpt", {"training.schedule.decay": 0.1}, False),
        ("t5", {"objective.noise": "iid", "objective.mean_length": 5}, True),
        ("t5", {"objective.mean_length": 5}, False),
        ("word2vec", {"training.clip": 0.5}, True),
        ("word2vec", {"training.seed": 1}, False),
        ("word2vec", {"model.min_n": 2}, True),
        ("fasttext", {"model.min_n": 2}, False),
        ("bert", {"model.vocab_size": 999}, True),
        ("transformer", {"model.distance_buckets": 16}, True),
        ("t5", {"model.distance_buckets": 16}, False),
        ("transformer", {"data.packing": "full"}, True),
        ("gpt", {"data.packing": "full"}, False),
    ],
)
def test_settings_without_effect_are_named(name, setting, idle, caplog):
    with caplog.at_level(logging.WARNING, logger="firth"):
        firth.recipe(name).with_settings(setting)
    assert [r for r in caplog.records if list(setting)[-1] in r.getMessage()] == (
        caplog.records if idle else []
    )
    assert bool(caplog.records) == idle


def test_another_tokenizer_in_an_existing_run_is_refused(papers, tmp_path):
    chosen = firth.recipe("bert", size="tiny").with_settings(
        {
            "training.steps": 1,
            "training.batch_tokens": 512,
            "data.valid": 0.2,
            "data.max_length": 64,
        }
    )
    corpus = firth.Corpus.from_texts(papers[:60])
    own, other = (firth.Tokenizer.train(papers[a : a + 40], vocab_size=300) for a in (0, 60))
    firth.pretrain(chosen, corpus, tmp_path / "run", tokenizer=own)
    firth.pretrain(chosen, corpus, tmp_path / "run", tokenizer=own)  # the same one: it is done
    with pytest.raises(ConfigError, match="tokenizer of its own"):
        firth.pretrain(chosen, corpus, tmp_path / "run", tokenizer=other)


@pytest.mark.parametrize(("name", "length"), [("bert", 2), ("bert-nsp", 3), ("gpt", 0)])
def test_a_sequence_must_hold_a_token_of_the_text(name, length):
    with pytest.raises(ConfigError, match=rf"data.max_length is {length}, expected at least"):
        firth.recipe(name, size="tiny").with_settings({"data.max_length": length})


def test_the_window_of_a_start_needs_one():
    with pytest.raises(ConfigError, match="there is none"):
        firth.recipe("bert").with_settings({"start_length": 400})


def test_the_order_of_groups_and_single_settings_does_not_matter():
    single, group = {"training.optimizer.lr": 5.0}, {"training.optimizer": {"type": "SGD"}}
    one = firth.recipe("bert").with_settings({**single, **group})
    assert one == firth.recipe("bert").with_settings({**group, **single})
    assert one.training.optimizer == SGD(lr=5.0)
    assert group == {"training.optimizer": {"type": "SGD"}}


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("bert", {"model.dropout": 1.5}, "dropout is 1.5"),
        ("bert", {"model.dropout": -0.1}, "dropout is -0.1"),
        ("bert", {"model.num_heads": 0}, "num_heads is 0"),
        ("modern-bert", {"model.global_every": 0}, "global_every is 0"),
        ("gpt", {"model.dropout": 1.0}, "dropout is 1,"),
        ("t5", {"model.dropout": 2}, "dropout is 2"),
        ("seq2seq", {"model.dropout": 1.0}, "dropout is 1,"),
        ("elmo", {"model.dropout": 1.0}, "dropout is 1,"),
        ("elmo", {"model.max_characters": 4}, "max_characters is 4, expected at least"),
        ("awd-lstm-2018", {"model.dropout": 2}, "input_dropout times dropout is 1.3"),
        ("awd-lstm", {"model.dropout": -1}, "output_dropout times dropout is -0.4"),
        ("awd-lstm", {"model.num_layers": 0}, "num_layers is 0, expected at least 1"),
        ("elmo", {"model.num_layers": -1}, "num_layers is -1"),
        ("bert", {"model.num_layers": 0}, "num_layers is 0"),
        ("gpt", {"model.num_layers": -1}, "num_layers is -1"),
        ("t5", {"model.num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ("bert", {"model.position_offset": -1}, "position_offset is -1, expected at least 0"),
        ("modern-bert", {"model.local_window": -3}, "local_window is -3"),
        ("gpt", {"model.rotary_base": 0}, "rotary_base is 0, expected more than 0"),
        ("bert", {"model.norm_eps": -1}, "norm_eps is -1"),
    ],
)
def test_shapes_that_no_network_has_are_refused(name, setting, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        firth.recipe(name).with_settings(setting)


def test_an_untrained_t5_knows_no_more_than_nothing():
    """Its loss is that of guessing: large scores at the start would have to be unlearned first."""
    torch.manual_seed(0)
    chosen = firth.recipe("t5", size="mini", vocab_size=1000)
    model = build(chosen.model).eval()
    states = model(
        Batch(
            input_ids=torch.arange(200),
            starts=torch.tensor([0, 200]),
            source=Batch(input_ids=torch.arange(300), starts=torch.tensor([0, 300])),
        )
    ).last
    loss = model.prediction_loss(states, torch.arange(200)) / 200
    assert abs(loss.item() - np.log(1000)) < 1.5
