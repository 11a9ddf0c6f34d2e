"""Generation: the choices of `transformers`, whether a text is alone or beside others."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import firth
from firth.api.generating import before_stop
from firth.errors import ConfigError, DivergedError, UnsupportedError
from firth.inference.beam_search import beam_search
from firth.inference.forward import Engine
from firth.inference.generation import Decoding, Reader, choose, continuations
from firth.models import GPT, AWDLSTMConfig, build, cache
from firth.protocols import Batch
from tests.reference import VOCABULARY, transformers
from tests.test_decoders import OWN, SHAPES, random_model

LAST = VOCABULARY.last
PROMPTS = [np.array([5, 9, 17]), np.array([6]), np.array([7, 8, 30, 31, 44, 12, 9])]


def engine_of(model: GPT) -> Engine:
    return Engine.of(model, "float32", model.config.max_length)


def run(engine: Engine, prompts: list[np.ndarray], **settings):
    how = Decoding(**settings)
    *_, found = continuations(engine, prompts, how, ends=[LAST], stop=lambda *_: False)
    return found


@pytest.mark.parametrize("name", [*SHAPES, *OWN])
def test_greedy_is_the_best_token_of_a_model_without_a_cache(name):
    model = random_model({**SHAPES, **OWN}[name])
    for prompt, found in zip(PROMPTS, run(engine_of(model), PROMPTS, max_tokens=12), strict=True):
        ids = list(prompt)
        for token, log in zip([*found.ids, LAST], found.log_probabilities, strict=False):
            with torch.no_grad():
                batch = Batch(input_ids=torch.tensor(ids), starts=torch.tensor([0, len(ids)]))
                scores = model.logits(model(batch).last[-1:])
            assert int(scores.argmax()) == token
            assert log == pytest.approx(float(torch.log_softmax(scores, -1).max()), abs=1e-4)
            ids.append(token)
        assert found.ended in ("end", "length")
        assert len(found.log_probabilities) == len(found.ids) + (found.ended == "end")


def their_ids(
    model: GPT, tmp_path, prompt: np.ndarray, max_tokens: int = 12, **settings
) -> list[int]:
    from firth.interop.huggingface import save_model

    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.from_numpy(prompt)[None]
    out = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        **settings,
    )
    new = out[0, len(prompt) :].tolist()
    return new[: new.index(LAST)] if LAST in new else new


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_is_that_of_transformers(name, penalty, tmp_path):
    model = random_model(SHAPES[name])
    for prompt in PROMPTS:
        (ours,) = run(engine_of(model), [prompt], max_tokens=12, repetition_penalty=penalty)
        assert ours.ids == their_ids(model, tmp_path, prompt, repetition_penalty=penalty)


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
@pytest.mark.parametrize(("length", "repetition"), [(0.0, 1), (1.0, 1), (2.0, 1), (1.0, 1.5)])
def test_beam_search_is_that_of_transformers(name, length, repetition, tmp_path):
    model = random_model(SHAPES[name])
    settings = {"length_penalty": length, "repetition_penalty": float(repetition)}
    for prompt in PROMPTS:
        how = Decoding(max_tokens=12, beams=4, **settings)
        ((best, *_),) = beam_search(engine_of(model), [prompt], how, ends=[LAST])
        assert best.ids == their_ids(model, tmp_path, prompt, num_beams=4, **settings)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_token_that_opens_and_closes_is_not_punished_for_opening(beams):
    """GPT-2 and ULMFiT have one token for both: the penalty would keep their texts from ending."""
    model = random_model(replace(SHAPES["gpt2"], tied=False))
    with torch.no_grad():  # one entry of the last state is 1, and gives the token its score
        model.final_norm.weight[0], model.final_norm.bias[0] = 0.0, 1.0
        model.head.weight[:, 0] = model.head.weight[LAST] = 0.0
        model.head.weight[LAST, 0] = 3.0
    for prompt in (np.array([LAST, 9, 17]), np.array([LAST])):
        batch = Batch(input_ids=torch.from_numpy(prompt), starts=torch.tensor([0, len(prompt)]))
        with torch.no_grad():
            log = float(model.logits(model(batch).last[-1:]).log_softmax(-1)[0, LAST])
        how = Decoding(max_tokens=4, repetition_penalty=10.0, beams=beams)
        if beams > 1:
            ((found, *_),) = beam_search(engine_of(model), [prompt], how, ends=[LAST])
        else:
            (found,) = run(engine_of(model), [prompt], max_tokens=4, repetition_penalty=10.0)
        assert (found.ids, found.ended) == ([], "end")
        assert found.log_probabilities == pytest.approx([log], abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_grows_with_the_texts(beams, monkeypatch):
    """Room is made as it is needed, never beyond the most; the texts are those of a large cache."""
    engine = engine_of(random_model(SHAPES["llama, grouped"]))
    how = Decoding(max_tokens=20, beams=beams)

    def texts():
        if beams > 1:
            found = beam_search(engine, PROMPTS, how, ends=[LAST])
            return [one.ids for hypotheses in found for one in hypotheses]
        return [one.ids for one in run(engine, PROMPTS, max_tokens=20)]

    expected = texts()
    monkeypatch.setattr(cache, "SPARE", 3)
    assert texts() == expected
    reader = Reader(engine, PROMPTS, 27)
    sizes = []
    for _ in range(20):
        sizes.append(reader.cache.layers[0].own.values.shape[2])
        reader.read([0, 1, 2], torch.tensor([9, 9, 9]))
    assert sizes == [10] * 4 + [20] * 10 + [27] * 6  # the longest prompt has 7 tokens


def test_a_cache_keeps_what_it_holds_of_some_texts():
    engine = engine_of(random_model(SHAPES["llama, grouped"]))
    reader = Reader(engine, PROMPTS, 30)
    own = reader.cache.layers[0].own
    before = own.values.clone()
    reader.cache.keep(torch.tensor([1, 0, 1]))
    assert own.values.shape == before.shape
    assert torch.equal(own.values[:, :, :3], before[[1, 0, 1], :, :3])
    assert not own.values[:, :, 3:].any()  # what a shorter text does not hold counts for nothing


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_hypotheses_that_close_are_ranked_as_in_transformers(length_penalty, tmp_path):
    """The closing token is likely: beams fill with closed texts, before the room ends and at it."""
    ends = set()
    for level in (4.0, 5.0):
        model = random_model(replace(SHAPES["gpt2"], tied=False))
        with torch.no_grad():  # one entry of the last state is 1, and gives the token its score
            model.head.weight.mul_(4)
            model.final_norm.weight[0], model.final_norm.bias[0] = 0.0, 1.0
            model.head.weight[:, 0] = model.head.weight[LAST] = 0.0
            model.head.weight[LAST, 0] = level
        for room in (4, 8):
            how = Decoding(max_tokens=room, beams=3, length_penalty=length_penalty)
            for prompt in PROMPTS:
                ((best, *others),) = beam_search(engine_of(model), [prompt], how, ends=[LAST])
                settings = {"num_beams": 3, "length_penalty": length_penalty}
                assert best.ids == their_ids(model, tmp_path, prompt, room, **settings)
                ends.add((best.ended, *(one.ended for one in others)))
    assert ("end", "end", "end") in ends
    # Without a penalty for length a longer text is never better than a closed one.
    assert length_penalty == 0 or any("length" in one and "end" in one for one in ends)


def test_wide_beams_find_the_most_probable_text():
    """With beams for every text of three tokens the search is exhaustive."""
    config = replace(SHAPES["gpt2"], vocab_size=6, hidden_size=16)
    model = random_model(config)
    engine = engine_of(model)
    how = Decoding(max_tokens=3, beams=300, length_penalty=0.0)
    ((best, *_),) = beam_search(engine, [np.array([5, 3])], how, ends=[LAST])
    best_sum = -np.inf
    for a in range(6):
        for b in range(6):
            for c in range(6):
                ids = [5, 3, a, b, c]
                batch = Batch(input_ids=torch.tensor(ids), starts=torch.tensor([0, 5]))
                with torch.no_grad():
                    logs = torch.log_softmax(model.logits(model(batch).last), -1)
                values = [float(logs[1 + i, t]) for i, t in enumerate((a, b, c))]
                closed = next((i for i, t in enumerate((a, b, c)) if t == LAST), 2)
                best_sum = max(best_sum, sum(values[: closed + 1]))
    assert sum(best.log_probabilities) == pytest.approx(best_sum, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}])
def test_a_text_does_not_depend_on_the_texts_beside_it(settings):
    engine = engine_of(random_model(SHAPES["llama, grouped"]))
    together = run(engine, PROMPTS, max_tokens=15, **settings)
    (alone,) = run(engine, PROMPTS[:1], max_tokens=15, **settings)
    assert together[0].ids == alone.ids
    again = run(engine, PROMPTS, max_tokens=15, **settings)
    assert [one.ids for one in together] == [one.ids for one in again]
    if settings:
        other = run(engine, PROMPTS, max_tokens=15, seed=1, **settings)
        assert [one.ids for one in together] != [one.ids for one in other]


def test_sampling_follows_the_probabilities():
    torch.manual_seed(0)
    scores = torch.randn(1, 12) * 2
    uniforms = (np.arange(20_000) + 0.5) / 20_000

    def shares(**settings) -> np.ndarray:
        how = Decoding(temperature=settings.pop("temperature", 1.0), **settings)
        drawn = choose(scores.expand(20_000, -1), [], uniforms, how)
        return np.bincount(drawn.numpy(), minlength=12) / 20_000

    p = torch.softmax(scores[0], -1).numpy()
    np.testing.assert_allclose(shares(), p, atol=2e-4)
    hot = torch.softmax(scores[0] / 2, -1).numpy()
    np.testing.assert_allclose(shares(temperature=2.0), hot, atol=2e-4)
    order = np.argsort(-p)
    three = np.zeros(12)
    three[order[:3]] = p[order[:3]] / p[order[:3]].sum()
    np.testing.assert_allclose(shares(top_k=3), three, atol=2e-4)
    kept = int((np.cumsum(p[order]) < 0.8).sum()) + 1  # the fewest that reach 0.8
    nucleus = np.zeros(12)
    nucleus[order[:kept]] = p[order[:kept]] / p[order[:kept]].sum()
    np.testing.assert_allclose(shares(top_p=0.8), nucleus, atol=2e-4)


def test_stop_and_room_end_a_text():
    model = random_model(SHAPES["gpt2"])
    engine = engine_of(model)
    (whole,) = run(engine, PROMPTS[:1], max_tokens=100)
    assert len(whole.ids) + len(PROMPTS[0]) <= model.config.max_length
    how = Decoding(max_tokens=10)
    wanted = whole.ids[3]
    first = whole.ids.index(wanted)
    *_, (stopped,) = continuations(
        engine, PROMPTS[:1], how, ends=[LAST], stop=lambda _, ids: ids[-1] == wanted
    )
    assert stopped.ids == whole.ids[: first + 1]
    assert stopped.ended == "stop"


def test_prompts_of_a_prefix_model_are_read_in_both_directions():
    """As reading each text anew, with the prompt as its prefix; left to right gives other texts."""
    plain = random_model(SHAPES["gpt2"])
    model = GPT(replace(plain.config, whole_prompts=True)).eval()
    model.load_state_dict(plain.state_dict())
    found = run(engine_of(model), PROMPTS, max_tokens=6)
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids, prefix = [*prompt.tolist()], torch.tensor([len(prompt)])
        for token, log in zip(one.ids, one.log_probabilities, strict=False):
            batch = Batch(
                input_ids=torch.tensor(ids), starts=torch.tensor([0, len(ids)]), prefix=prefix
            )
            with torch.no_grad():
                logs = model.logits(model(batch).last[-1:]).log_softmax(-1)[0]
            assert int(logs.argmax()) == token
            assert float(logs[token]) == pytest.approx(log, abs=1e-4)
            ids.append(token)
    causal = run(engine_of(plain), PROMPTS, max_tokens=6)
    assert [one.ids for one in causal] != [one.ids for one in found]


def test_stop_ends_a_hypothesis_of_beam_search():
    """One that meets it is closed with its score, the others go on; the best of all is given."""
    engine = engine_of(random_model(SHAPES["gpt2"]))
    how = Decoding(max_tokens=8, beams=3)
    ((free, *_),) = beam_search(engine, PROMPTS[:1], how, ends=[LAST])
    wanted = free.ids[3]
    (found,) = beam_search(
        engine, PROMPTS[:1], how, ends=[LAST], stop=lambda _, ids: ids[-1] == wanted
    )
    stopped = [one for one in found if one.ended == "stop"]
    assert stopped
    assert all(one.ids.index(wanted) == len(one.ids) - 1 for one in stopped)
    assert all(wanted not in one.ids for one in found if one.ended != "stop")
    scores = [sum(one.log_probabilities) / (len(one.ids) + (one.ended == "end")) for one in found]
    assert scores == sorted(scores, reverse=True)
    everything = beam_search(engine, PROMPTS[:1], how, ends=[LAST], stop=lambda *_: True)
    assert [len(one.ids) for one in everything[0]] == [1, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": 1e-39},
        {"beams": 2, "length_penalty": float("nan")},
        {"top_p": 0.0},
        {"beams": 2, "temperature": 1.0},
        {"seed": -1},
        {"repetition_penalty": float("nan")},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match="|".join(wrong) + "|beam"):
        Decoding(**wrong)


@pytest.fixture(scope="module")
def lm(papers) -> firth.LanguageModel:
    tokenizer = firth.Tokenizer.train(papers[:60], "bpe", 400)
    config = replace(SHAPES["gpt2"], vocab_size=tokenizer.vocabulary.size, max_length=64)
    return firth.LanguageModel(random_model(config), tokenizer, precision="float32")


def test_texts_come_whole_or_piece_by_piece(lm):
    prompts = ["The results", "", "We é"]
    found = lm.generate(prompts, max_tokens=20, temperature=0.7)
    assert [one.prompt for one in found] == prompts
    assert all(one.text == one.prompt + one.continuation for one in found)
    one = lm.generate("The results", max_tokens=20, temperature=0.7)
    assert one.continuation == found[0].continuation
    pieces = list(lm.stream("The results", max_tokens=20, temperature=0.7))
    assert len(pieces) > 1
    assert "".join(pieces) == one.continuation
    stop = one.continuation[4:7]
    cut = lm.generate("The results", max_tokens=20, temperature=0.7, stop=[stop])
    assert cut.continuation == one.continuation.partition(stop)[0]
    assert "".join(lm.stream("The results", max_tokens=20, temperature=0.7, stop=[stop])) == (
        cut.continuation
    )


def test_the_earliest_stop_string_counts_whatever_their_order():
    for stop in (["bc", "ab", "z"], ["z", "ab", "bc"]):
        assert before_stop("xabcy", stop) == "x"
        assert before_stop("xabcy", stop, backward=True) == "y"
    assert before_stop("xabcy", ["z"]) == before_stop("xabcy", [], backward=True) == "xabcy"


def test_tokens_are_those_that_are_shown(lm):
    """What a stop string cut off is gone from the tokens, too, but for a token that it cuts."""
    how = {"temperature": 0.7, "stop": ["e"]}
    lengths = set()
    for seed in range(6):
        whole = lm.generate("The results", max_tokens=20, temperature=0.7, seed=seed)
        cut = lm.generate("The results", max_tokens=20, seed=seed, **how)
        if cut.ended != "stop":
            continue
        n = len(cut.tokens)
        lengths.add(n)
        assert cut.continuation == whole.continuation.partition("e")[0]
        assert cut.tokens == whole.tokens[:n]
        np.testing.assert_allclose(cut.log_probabilities, whole.log_probabilities[:n], atol=1e-5)
        if n:
            fewer = lm.generate("The results", max_tokens=n, temperature=0.7, seed=seed)
            assert fewer.continuation.startswith(cut.continuation.rstrip())
        if n > 1:
            fewer = lm.generate("The results", max_tokens=n - 1, temperature=0.7, seed=seed)
            assert not fewer.continuation.startswith(cut.continuation.rstrip())
    assert len(lengths) > 2


def test_tokens_are_those_that_are_shown_of_a_text_written_backward(papers):
    tokenizer = firth.Tokenizer.train(papers[:60], "word", 300)
    size = tokenizer.vocabulary.size
    shape = {"embedding_size": 16, "hidden_size": 24, "num_layers": 2, "backward": True}
    torch.manual_seed(0)
    network = build(AWDLSTMConfig(vocab_size=size, **shape)).eval()
    model = firth.LanguageModel(network, tokenizer, precision="float32")
    how = {"max_tokens": 8, "temperature": 1.0, "backward": True}
    whole = model.generate("table", **how)
    assert len(whole.tokens) == 8
    cut = model.generate("table", stop=[whole.tokens[-3]], **how)
    assert cut.continuation.split() == whole.continuation.split()[-2:] == cut.tokens
    np.testing.assert_allclose(cut.log_probabilities, whole.log_probabilities[-2:], atol=1e-5)


@pytest.mark.parametrize("stop", ["END", [""], ["a", ""]])
def test_stop_strings_that_stop_at_anything_are_refused(stop, lm):
    for use in (lm.generate, lambda *a, **how: list(lm.stream(*a, **how))):
        with pytest.raises(ConfigError, match="expected a list of strings"):
            use("The results", max_tokens=4, stop=stop)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_stop_strings_are_looked_for_where_they_are_cut(kind, papers):
    """The space between prompt and continuation counts, marks of pieces of words do not."""
    tokenizer = firth.Tokenizer.train(papers[:60], kind, 400)
    config = replace(SHAPES["gpt2"], vocab_size=tokenizer.vocabulary.size, max_length=64)
    model = firth.LanguageModel(random_model(config), tokenizer, precision="float32")
    for seed in range(8):
        how = {"max_tokens": 12, "temperature": 1.0, "seed": seed}
        whole = model.generate("The results", **how)
        if kind == "wordpiece":
            marked = model.generate("The results", stop=["##"], **how)
            assert (marked.tokens, marked.ended) == (whole.tokens, whole.ended)
        stop = whole.continuation[:2]
        if len(stop) < 2 or "\ufffd" in stop:
            continue
        cut = model.generate("The results", stop=[stop], **how)
        assert (cut.continuation, cut.ended) == ("", "stop")
        assert cut.tokens == []
        assert len(cut.log_probabilities) == 0


def test_low_precision_scores_have_a_head_in_float32(papers):
    """Large scores in bfloat16 would be off by tenths of a nat."""
    tokenizer = firth.Tokenizer.train(papers[:60], "bpe", 400)
    config = replace(SHAPES["gpt2"], vocab_size=tokenizer.vocabulary.size, max_length=64)
    for tied in (True, False):
        network = random_model(replace(config, tied=tied))
        with torch.no_grad():
            (network.embeddings.tokens if tied else network.head).weight.mul_(20)
        model = firth.LanguageModel(network, tokenizer, precision="bfloat16")
        text = "The results are in the table."
        (states,) = model.logits([text])
        logs = torch.log_softmax(torch.from_numpy(states.values), dim=1).numpy()
        ids = tokenizer.encode(text, special_tokens=False).ids
        (score,) = model.score([text])
        expected = logs[np.arange(len(ids)), ids]
        np.testing.assert_allclose(score.log_probabilities, expected, atol=2e-3)


def test_scores_are_the_sum_over_the_tokens(lm):
    text = "The results are in the table."
    (score,) = lm.score([text])
    assert score.method == "log-likelihood"
    ids = [lm.tokenizer.vocabulary.first, *lm.tokenizer.encode(text, special_tokens=False).ids]
    batch = Batch(input_ids=torch.tensor(ids), starts=torch.tensor([0, len(ids)]))
    with torch.no_grad():
        logs = torch.log_softmax(lm.model.logits(lm.model(batch).last), -1)
    wanted = [float(logs[i, t]) for i, t in enumerate(ids[1:])]
    np.testing.assert_allclose(score.log_probabilities, wanted, atol=1e-4)
    assert score.bits_per_byte == pytest.approx(-sum(wanted) / np.log(2) / len(text), rel=1e-4)


def test_long_texts_are_scored_with_half_a_window_at_least(lm):
    text = " ".join(["The results are in the table."] * 20)
    (score,) = lm.score([text])
    ids = [lm.tokenizer.vocabulary.first, *lm.tokenizer.encode(text, special_tokens=False).ids]
    assert len(score.tokens) == len(ids) - 1 > 2 * lm.max_length
    done = 0
    for t, log in enumerate(score.log_probabilities):
        if t >= done + (lm.max_length - 1 if done == 0 else lm.max_length // 2):
            done = t
        begin = 0 if done == 0 else done + lm.max_length // 2 + 1 - lm.max_length
        context = ids[begin : t + 1]
        batch = Batch(input_ids=torch.tensor(context), starts=torch.tensor([0, len(context)]))
        with torch.no_grad():
            logs = torch.log_softmax(lm.model.logits(lm.model(batch).last[-1:]), -1)
        assert log == pytest.approx(float(logs[0, ids[t + 1]]), abs=1e-3)
        assert t < lm.max_length or len(context) >= lm.max_length // 2


def test_what_a_decoder_cannot_do_and_an_encoder_neither(lm, tiny_run):
    with pytest.raises(UnsupportedError, match="generate"):
        lm.fill("The [MASK].")
    with pytest.raises(UnsupportedError, match="fill"):
        firth.load(tiny_run).generate("The")
    with pytest.raises(UnsupportedError, match="shorten"):
        lm.generate("word " * 100)
    with pytest.raises(ConfigError, match="beams"):
        next(lm.stream("The", beams=2))


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_that_no_token_has_are_never_written(lm, beams):
    """A table may be longer than the vocabulary, as T5's is."""
    size = lm.tokenizer.vocabulary.size
    model = random_model(replace(lm.model.config, vocab_size=size + 20))
    with torch.no_grad():
        model.embeddings.tokens.weight[size:] *= 100  # else they would hardly ever be the best
    long = firth.LanguageModel(model, lm.tokenizer, precision="float32")
    assert len(long.generate("The results", max_tokens=8, beams=beams).tokens) > 0
    hidden = long.hidden_states(["The results"])[0].values[-1]
    with torch.no_grad():
        best = model.logits(torch.from_numpy(np.asarray(hidden))).argmax(1)
    assert (best >= size).any()


@pytest.mark.parametrize("beams", [1, 2])
def test_log_probabilities_are_the_models_own(beams):
    """Rows that no token has are never chosen, and have their share of the probability."""
    model = random_model(SHAPES["gpt2"])
    size, prompt = 40, PROMPTS[0]
    how = Decoding(max_tokens=6, beams=beams)
    if beams > 1:
        ((one, *_),) = beam_search(engine_of(model), [prompt], how, ends=[], size=size)
    else:
        *_, (one,) = continuations(
            engine_of(model), [prompt], how, ends=[], stop=lambda *_: False, size=size
        )
    assert len(one.ids) == 6
    assert max(one.ids) < size < model.config.vocab_size
    whole = torch.tensor([*prompt.tolist(), *one.ids])
    with torch.no_grad():
        states = model(Batch(input_ids=whole, starts=torch.tensor([0, len(whole)]))).last
        logs = model.logits(states).log_softmax(-1)
    expected = logs[len(prompt) - 1 : -1].gather(1, whole[len(prompt) :, None]).squeeze(1)
    assert one.log_probabilities == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_model_that_diverged_generates_nothing():
    model = random_model(SHAPES["gpt2"])
    with torch.no_grad():
        model.final_norm.weight[0] = math.nan
    with pytest.raises(DivergedError, match="no numbers"):
        run(engine_of(model), PROMPTS, max_tokens=2)
