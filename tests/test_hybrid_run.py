"""A hybrid of masked and causal language modelling through every room."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import firth
from firth.errors import ConfigError, UnsupportedError
from firth.models import GPT, EncoderDecoder
from firth.objectives.hybrid import _take_share
from firth.protocols import Batch
from tests.test_gpt_run import SMALL


@pytest.fixture(scope="module")
def lm(tmp_path_factory, papers) -> firth.LanguageModel:
    """A tiny hybrid, pre-trained on papers for a few seconds."""
    chosen = firth.recipe("hybrid", size="tiny", vocab_size=1000)
    path = tmp_path_factory.mktemp("hybrid") / "run"
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:180], papers[180:]))
    firth.pretrain(chosen.with_settings({**SMALL, "training.steps": 150}), train, path, valid=valid)
    loaded = firth.load(path, device="cpu", precision="float32")
    assert isinstance(loaded, firth.LanguageModel)
    return loaded


def words_of(texts: list[str], seed: int) -> list[str]:
    """The same words in random order."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.permutation(text.split()).tolist()) for text in texts]


def test_it_learns_both_ways(lm, papers):
    """Text is likelier than its words in random order, left to right and blank by blank."""
    texts = [" ".join(text.split()[:12]) for text in papers[180:]]
    for settings, method in (({}, "log-likelihood"), ({"pseudo": True}, "pseudo-log-likelihood")):
        good, bad = lm.score(texts, **settings), lm.score(words_of(texts, 0), **settings)
        assert good[0].method == method
        gains = [(a.total - b.total) / len(a.tokens) for a, b in zip(good, bad, strict=True)]
        assert np.mean(gains) > 0.1
        assert np.mean([one.total / len(one.tokens) for one in good]) > -6.2  # frequencies: -5.9


@torch.no_grad()
def test_scores_left_to_right_see_nothing_later(lm):
    """Though the network reads both ways where it is not told otherwise."""
    first, second = lm.score(["The parser reads a sentence.", "The parser reads other words here."])
    same = first.tokens.index(second.tokens[3])
    np.testing.assert_allclose(
        first.log_probabilities[:same], second.log_probabilities[:same], atol=1e-5
    )
    one, two = (lm.hidden_states([text])[0].values[-1] for text in ("The parser", "The parser."))
    assert np.abs(one[:2] - two[:2]).max() > 1e-3  # embedding sees what comes after
    logits = lm.logits(["The parser reads"])[0].values
    longer = lm.logits(["The parser reads a sentence"])[0].values
    np.testing.assert_allclose(logits[:3], longer[:3], atol=1e-4)


@torch.no_grad()
def test_pseudo_scores_are_those_of_masked_copies(lm):
    """Each token masked in a copy, read both ways, predicted from the place before."""
    text = "The parser reads a sentence."
    (score,) = lm.score([text], pseudo=True)
    ids = torch.from_numpy(lm.tokenizer.encode(text).ids)
    model, mask = lm.model, lm.tokenizer.vocabulary.mask
    assert isinstance(model, GPT)
    expected = []
    for t in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[t] = mask
        whole = torch.tensor([0, len(ids)])
        batch = Batch(input_ids=masked, starts=whole, prefix=torch.tensor([len(ids)]))
        logits = model.logits(model(batch).last[t - 1])
        expected.append(torch.log_softmax(logits, -1)[ids[t]].item())
    np.testing.assert_allclose(score.log_probabilities, expected, atol=1e-4)


def test_it_fills_generates_and_adapts(lm):
    guesses = lm.fill("The <mask> is a sentence.", top_k=3)
    assert len(guesses) == 3
    assert isinstance(lm.generate("The parser", max_tokens=5).continuation, str)
    with pytest.raises(UnsupportedError, match="of a hybrid, within_word needs pseudo"):
        lm.score(["One."], within_word=True)


@torch.no_grad()
def test_an_encoder_decoder_scores_by_its_sentinel():
    """Each token replaced by the sentinel in the source; the decoder says it after the sentinel."""
    tokenizer = firth.Tokenizer.train(["the cat sat on the mat"] * 9, "word", 60, sentinels=3)
    config = firth.recipe("t5", size="tiny").with_vocabulary(tokenizer.vocabulary).model
    torch.manual_seed(0)
    model = EncoderDecoder(config).eval()
    lm = firth.LanguageModel(model, tokenizer, precision="float32")
    (score,) = lm.score(["the cat sat"])
    vocabulary = tokenizer.vocabulary
    ids = torch.from_numpy(tokenizer.encode("the cat sat").ids)
    expected = []
    for t in range(1, len(ids) - 1):
        source = ids.clone()
        source[t] = vocabulary.sentinels[0]
        batch = Batch(
            input_ids=torch.tensor([vocabulary.first, vocabulary.sentinels[0]]),
            starts=torch.tensor([0, 2]),
            source=Batch(input_ids=source, starts=torch.tensor([0, len(ids)])),
        )
        logits = model.logits(model(batch).last[1])
        expected.append(torch.log_softmax(logits, -1)[ids[t]].item())
    np.testing.assert_allclose(score.log_probabilities, expected, atol=1e-4)


def test_a_causal_objective_sees_no_later_token_even_in_a_hybrid():
    """Trained with CausalLM alone, a network that reads both ways must not read ahead."""
    from firth.objectives import CausalLM
    from tests.sources import VOCABULARY, sequences_of

    config = firth.recipe("hybrid", size="tiny").with_vocabulary(VOCABULARY).model
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        sequences = sequences_of([12, 9])
        batch = CausalLM().prepare(sequences, np.random.default_rng(0))
        changed = batch.input_ids.clone()
        changed[11] = 7 if changed[11] != 7 else 8  # the last token of the first sequence
        before, after = model(batch).last, model(replace(batch, input_ids=changed)).last
    torch.testing.assert_close(before[:11], after[:11], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (2, 0.25), (8, 1 / 16), (3, 0.5), (4, 1)])
def test_the_causal_share_holds_on_average_however_few_sequences(count, share):
    lengths = np.full(count, 128)
    taken = [_take_share(lengths, share, np.random.default_rng(seed)) for seed in range(2000)]
    assert np.mean(taken) == pytest.approx(share, abs=0.03 if share < 1 else 0)


def test_objectives_that_do_not_fit_the_model_are_refused():
    wrong = (
        ("t5", {"type": "PrefixLM"}, "objective.encoder is False; set it to True"),
        ("gpt", {"type": "PrefixLM", "encoder": True}, "objective.encoder is True"),
        ("gpt", {"type": "PrefixLM"}, "whole_prompts is False; set it to True"),
        ("gpt", {"type": "Hybrid"}, "reads in both directions"),
    )
    for name, objective, message in wrong:
        with pytest.raises(ConfigError, match=message):
            firth.recipe(name).with_settings({"objective": objective})
