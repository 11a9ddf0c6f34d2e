"""Encoder-decoders: the numbers of `transformers` and of torch, the cache, files both ways."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import firth
from firth.errors import UnsupportedError
from firth.inference.beam_search import beam_search
from firth.inference.forward import Engine
from firth.inference.generation import Decoding, continuations
from firth.interop.huggingface import load_model, save_model
from firth.models import EncoderDecoder, EncoderDecoderConfig
from firth.models.positions import distance_buckets, sinusoids
from firth.protocols import Batch
from tests.reference import VOCAB_SIZE, VOCABULARY, distance, transformers

TOLERANCE = 1e-5

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 40,
    "max_length": 64,
    "dropout": 0.0,
}
T5 = {
    "norm": "pre",
    "norm_kind": "rms",
    "norm_eps": 1e-6,
    "positions": "relative",
    "bias": False,
    "scale_embeddings": False,
    "scale_scores": False,
}
V11 = {"activation": "gelu_tanh", "gated": True, "tied": False}
SHAPES = {
    "v1.0": EncoderDecoderConfig(**SIZES, **T5, scale_outputs=True),
    "v1.0, few distances": EncoderDecoderConfig(
        **SIZES, **T5, scale_outputs=True, distance_buckets=8, max_distance=12
    ),
    "v1.1": EncoderDecoderConfig(**SIZES, **T5, **V11),
    "v1.1, one matrix": EncoderDecoderConfig(**SIZES, **T5, **{**V11, "tied": True}),
    "v1.1, deep decoder, wide heads": EncoderDecoderConfig(
        **SIZES, **T5, **V11, num_decoder_layers=3, head_size=10
    ),
}
TRANSFORMER = EncoderDecoderConfig(**SIZES)
ALL = {**SHAPES, "transformer": TRANSFORMER}

SOURCES, TARGETS = (30, 3, 17, 29, 1), (4, 22, 1, 9, 12)


def random_model(config: EncoderDecoderConfig) -> EncoderDecoder:
    torch.manual_seed(0)
    model = EncoderDecoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no zeros and ones hide a mistake
            if name.startswith(("embeddings", "head")):
                parameter.mul_(0.3)  # scores of size 1, where 1e-5 is float32's precision
    return model


def random_sequences(lengths, seed: int) -> Batch:
    torch.manual_seed(seed)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    return Batch(input_ids=torch.randint(5, VOCAB_SIZE, (int(starts[-1]),)), starts=starts)


def random_batch() -> Batch:
    source, target = random_sequences(SOURCES, 1), random_sequences(TARGETS, 2)
    return Batch(input_ids=target.input_ids, starts=target.starts, source=source)


def pieces(batch: Batch):
    return batch.input_ids.split(batch.starts.diff().tolist())


def their_logits(model, batch: Batch) -> torch.Tensor:
    assert batch.source is not None
    found = []
    for source, target in zip(pieces(batch.source), pieces(batch), strict=True):
        found.append(model(input_ids=source[None], decoder_input_ids=target[None]).logits[0])
    return torch.cat(found)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_t5_loads_there_and_theirs_here(name, tmp_path):
    ours, batch = random_model(SHAPES[name]), random_batch()
    save_model(tmp_path / "ours", ours, vocabulary=VOCABULARY, firth={"note": 1})
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    logits = ours.logits(ours(batch).last)
    assert logits.abs().max() > 0.5
    assert distance(logits, their_logits(theirs, batch)) <= TOLERANCE
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.family == "t5"
    assert distance(loaded.model.logits(loaded.model(batch).last), logits) <= TOLERANCE
    again = load_model(tmp_path / "ours")
    assert again.model.config == SHAPES[name]
    assert again.firth == {"note": 1}


@pytest.mark.parametrize("name", SHAPES)
def test_t5_states_and_gradients_agree(name, tmp_path):
    ours, batch = random_model(SHAPES[name]), random_batch()
    save_model(tmp_path, ours, vocabulary=VOCABULARY, firth={})
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert batch.source is not None
    one = Batch(
        input_ids=pieces(batch)[1],
        starts=torch.tensor([0, TARGETS[1]]),
        source=Batch(input_ids=pieces(batch.source)[1], starts=torch.tensor([0, SOURCES[1]])),
    )
    assert one.source is not None
    reference = theirs(
        input_ids=one.source.input_ids[None],
        decoder_input_ids=one.input_ids[None],
        output_hidden_states=True,
    )
    for output, states in (
        (ours(one, hidden_states=True), reference.decoder_hidden_states),
        (ours(one.source, hidden_states=True), reference.encoder_hidden_states),
    ):
        for a, b in zip(output.hidden_states, states, strict=True):
            assert distance(a, b[0]) <= TOLERANCE
    targets = one.input_ids.flip(0)
    nn.functional.cross_entropy(reference.logits[0], targets, reduction="sum").backward()
    ours.prediction_loss(ours(one).last, targets).backward()
    table = theirs.get_input_embeddings().weight.grad
    assert distance(ours.embeddings.tokens.weight.grad, table) <= TOLERANCE * table.abs().max()
    near = theirs.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad
    ours_near = ours.decoder.distances.values.weight.grad
    assert distance(ours_near, near) <= TOLERANCE * near.abs().max()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def _copy_attention(theirs: nn.MultiheadAttention, weights, biases, out) -> None:
    theirs.in_proj_weight.copy_(torch.cat(weights))
    theirs.in_proj_bias.copy_(torch.cat(biases))
    theirs.out_proj.load_state_dict(out.state_dict())


@torch.no_grad()
def test_the_transformer_is_torchs(tmp_path):
    """Vaswani et al. 2017 against `torch.nn.Transformer`, which has no embeddings."""
    ours, batch = random_model(TRANSFORMER), random_batch()
    theirs = nn.Transformer(24, 4, 2, 2, 40, 0.0, "relu", batch_first=True).eval()
    theirs.encoder.norm, theirs.decoder.norm = nn.Identity(), nn.Identity()
    for stack, layers in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        for mine, yours in zip(stack.layers, layers.layers, strict=True):
            qkv = mine.attention.qkv
            _copy_attention(yours.self_attn, [qkv.weight], [qkv.bias], mine.attention.out)
            norms = [mine.attention_norm, mine.feed_forward_norm]
            if mine.cross is not None:
                q, kv = mine.cross.q, mine.cross.kv
                weights, biases = [q.weight, kv.weight], [q.bias, kv.bias]
                _copy_attention(yours.multihead_attn, weights, biases, mine.cross.out)
                norms.insert(1, mine.cross_norm)
            yours.linear1.load_state_dict(mine.feed_forward.up.state_dict())
            yours.linear2.load_state_dict(mine.feed_forward.down.state_dict())
            for i, norm in enumerate(norms, 1):
                getattr(yours, f"norm{i}").load_state_dict(norm.state_dict())

    def embedded(ids):
        table = ours.embeddings.tokens.weight[ids] * 24**0.5
        return (table + sinusoids(torch.arange(len(ids)), 24))[None]

    found = []
    for source, target in zip(pieces(batch.source), pieces(batch), strict=True):
        mask = nn.Transformer.generate_square_subsequent_mask(len(target))
        found.append(theirs(embedded(source), embedded(target), tgt_mask=mask)[0])
    assert distance(ours(batch).last, torch.cat(found)) <= TOLERANCE


def test_sinusoids_are_the_papers():
    """PE(m, 2i) and PE(m, 2i + 1) of section 3.5, one by one."""
    table = sinusoids(torch.arange(50), 8).double()
    for m in range(50):
        for i in range(4):
            angle = torch.tensor(m / 10000 ** (2 * i / 8), dtype=torch.float64)
            assert abs(table[m, 2 * i] - angle.sin()) < 1e-5
            assert abs(table[m, 2 * i + 1] - angle.cos()) < 1e-5


@pytest.mark.parametrize("both_sides", [True, False])
def test_distance_buckets_are_theirs(both_sides):
    attention = transformers.models.t5.modeling_t5.T5Attention
    distances = torch.arange(-400, 401)
    for num_buckets, max_distance in ((32, 128), (8, 12), (16, 300)):
        theirs = attention._relative_position_bucket(
            distances, both_sides, num_buckets, max_distance
        )
        ours = distance_buckets(
            distances, num_buckets=num_buckets, max_distance=max_distance, both_sides=both_sides
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_batched_is_one_by_one_and_the_future_changes_nothing(name):
    model, batch = random_model(ALL[name]), random_batch()
    whole = model(batch).last
    alone = torch.cat([model(part).last for part in batch.split(len(SOURCES))])
    assert distance(whole, alone) <= TOLERANCE
    changed = batch.input_ids.clone()
    ends = batch.starts[1:] - 1
    changed[ends] = (changed[ends] - 4) % (VOCAB_SIZE - 5) + 5
    after = model(Batch(input_ids=changed, starts=batch.starts, source=batch.source)).last
    same = torch.ones(len(changed), dtype=torch.bool)
    same[ends] = False
    torch.testing.assert_close(whole[same], after[same], atol=1e-6, rtol=0)
    assert (whole[ends] - after[ends]).abs().max() > 0.1


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_reading_with_a_cache_is_reading_at_once(name):
    """One token of each target at a time; after three, two sequences swap and one is left out."""
    model = random_model(ALL[name])
    source, target = random_sequences(SOURCES, 1), random_sequences((6,) * 5, 2)
    both = Batch(input_ids=target.input_ids, starts=target.starts, source=source)
    whole = model(both).last.view(5, 6, -1)
    ids = target.input_ids.view(5, 6)
    cache, rows = model.new_cache(8), torch.arange(5)
    for t in range(6):
        if t == 3:
            rows = torch.tensor([4, 1, 0, 3])
            cache.keep(rows)
        starts = torch.arange(len(rows) + 1)
        step = Batch(input_ids=ids[rows, t], starts=starts, source=source if t == 0 else None)
        assert distance(model(step, cache=cache).last, whole[rows, t]) <= TOLERANCE


def test_parameter_counts_are_the_papers():
    """Raffel et al. 2020, section 3.7 (60 and 220 million); Vaswani et al. 2017, table 3."""
    t5 = {**T5, "vocab_size": 32128, "head_size": 64}
    small = {"hidden_size": 512, "num_layers": 6, "num_heads": 8, "intermediate_size": 2048}
    base = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072}
    gated = {"num_layers": 8, "num_heads": 6, "intermediate_size": 1024}
    counts = {
        60_506_624: EncoderDecoderConfig(**t5, **small, scale_outputs=True),
        222_903_552: EncoderDecoderConfig(**t5, **base, scale_outputs=True),
        76_961_152: EncoderDecoderConfig(**t5, **{**small, **gated}, **V11),
        247_577_856: EncoderDecoderConfig(**t5, **{**base, "intermediate_size": 2048}, **V11),
    }
    for count, config in counts.items():
        with torch.device("meta"):
            model = EncoderDecoder(config)
        assert sum(p.numel() for p in model.parameters()) == count
    with torch.device("meta"):
        paper = EncoderDecoder(EncoderDecoderConfig(vocab_size=37_000, **small))
    total = sum(p.numel() for p in paper.parameters())
    assert round(total / 1e6) == 63  # the paper rounds to 65


def test_initialisation_is_the_table():
    torch.manual_seed(0)
    big = {**SIZES, "hidden_size": 256, "intermediate_size": 1024, "head_size": 64}
    t5 = dict(EncoderDecoder(EncoderDecoderConfig(**big, **T5, **V11)).named_parameters())
    assert t5["embeddings.tokens.weight"].std().item() == pytest.approx(1.0, rel=0.05)
    assert t5["head.weight"].std().item() == pytest.approx(1 / 16, rel=0.05)
    qkv = t5["encoder.layers.0.attention.qkv.weight"]
    assert qkv[:256].std().item() == pytest.approx((256 * 64) ** -0.5, rel=0.05)
    assert qkv[256:].std().item() == pytest.approx(256**-0.5, rel=0.05)
    cross = t5["decoder.layers.1.cross.q.weight"]
    assert cross.std().item() == pytest.approx((256 * 64) ** -0.5, rel=0.05)
    assert t5["decoder.layers.0.feed_forward.down.weight"].std().item() == pytest.approx(
        1024**-0.5, rel=0.05
    )
    distances = t5["decoder.distances.values.weight"]
    assert distances.abs().max().item() == pytest.approx((6 / sum(distances.shape)) ** 0.5, rel=0.1)
    plain = dict(EncoderDecoder(EncoderDecoderConfig(**big)).named_parameters())
    bound = (6 / (256 + 256)) ** 0.5
    largest = plain["encoder.layers.0.attention.qkv.weight"].abs().max().item()
    assert largest == pytest.approx(bound, rel=1e-3)
    assert plain["embeddings.tokens.weight"].std().item() == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_smoothing_is_torchs(dtype):
    from firth.models.layers import linear_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(20, 16).to(dtype).requires_grad_()
    weight = torch.randn(31, 16, requires_grad=True)
    targets = torch.randint(31, (18,))
    loss = linear_cross_entropy(hidden, weight, None, targets, label_smoothing=0.1)
    loss.backward()
    h = hidden.detach().float().requires_grad_()
    w = weight.detach().to(dtype).float().requires_grad_()
    expected = nn.functional.cross_entropy(
        (h @ w.t())[:18], targets, reduction="sum", label_smoothing=0.1
    )
    expected.backward()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert abs(loss.item() / expected.item() - 1) < tolerance
    for ours, theirs in ((hidden, h), (weight, w)):
        assert (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm() < tolerance


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_label_smoothing_reaches_the_loss_of_the_model(name):
    model = random_model(SHAPES[name])
    hidden = 5 * torch.randn(20, model.config.hidden_size)  # far from even scores
    targets = torch.randint(VOCAB_SIZE, (20,))
    plain, expected = (
        nn.functional.cross_entropy(
            model.logits(hidden), targets, reduction="sum", label_smoothing=share
        )
        for share in (0.0, 0.1)
    )
    found = model.prediction_loss(hidden, targets, label_smoothing=0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(plain / expected - 1) > 1e-3


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_embeddings_of_a_stack_of_its_own_are_refused(stack, tmp_path):
    save_model(tmp_path, random_model(SHAPES["v1.0"]), vocabulary=VOCABULARY, firth={})
    tensors = load_file(tmp_path / "model.safetensors")
    repeated = f"{stack}.embed_tokens.weight"
    for other in (0, 1):
        changed = {**tensors, repeated: tensors["shared.weight"] + other}
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        if not other:
            load_model(tmp_path)
    with pytest.raises(UnsupportedError, match=f"{repeated} has numbers of its own"):
        load_model(tmp_path)


def test_settings_that_there_is_no_class_for_are_refused(tmp_path):
    save_model(tmp_path, random_model(SHAPES["v1.0"]), vocabulary=VOCABULARY, firth={})
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "feed_forward_proj": "gated-tanh"}))
    with pytest.raises(Exception, match="feed_forward_proj is 'gated-tanh'"):
        load_model(tmp_path)
    path.write_text(json.dumps({**settings, "dense_act_fn": "gelu_new"}))  # heeded by transformers
    with pytest.raises(UnsupportedError, match=r"dense_act_fn is 'gelu_new' beside .* 'relu'"):
        load_model(tmp_path)


@pytest.mark.parametrize("tied", [None, True, False])
def test_outputs_are_scaled_unless_the_settings_say_that_nothing_is_tied(tmp_path, tied):
    model = random_model(SHAPES["v1.0"] if tied is not False else SHAPES["v1.1"])
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text()) | {"tie_word_embeddings": tied}
    del settings["scale_decoder_outputs"]
    path.write_text(json.dumps(settings))
    assert load_model(tmp_path).model.config.scale_outputs == (tied is not False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_has_no_ceiling(dtype):
    """Of a target whose probability is 0 in the format, with and without a gradient."""
    from firth.models.layers import linear_cross_entropy

    weight = torch.eye(4)
    hidden = torch.tensor([[200.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=dtype)
    targets = torch.tensor([1, 0])
    expected = 200 + np.log(1 + 3 / np.e)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, None, targets).item() == pytest.approx(
            expected, rel=1e-3
        )
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, None, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_weighted_losses_are_torchs():
    from firth.models.layers import linear_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(31, 16, requires_grad=True)
    bias = torch.randn(31, requires_grad=True)
    targets, weights = torch.randint(31, (18,)), torch.rand(18)
    loss = linear_cross_entropy(hidden, weight, bias, targets, weights=weights)
    ours = torch.autograd.grad(loss, (hidden, weight, bias))
    with torch.no_grad():
        again = linear_cross_entropy(hidden, weight, bias, targets, weights=weights)
    losses = nn.functional.cross_entropy(
        (hidden @ weight.t() + bias)[:18], targets, reduction="none"
    )
    expected = torch.autograd.grad((losses * weights).sum(), (hidden, weight, bias))
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(loss, (losses * weights).sum())
    for one, two in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def _their_generation(theirs, source: torch.Tensor, **settings) -> list[int]:
    found = theirs.generate(
        source[None],
        do_sample=False,
        use_cache=False,  # theirs counts the encoder's layers, and fails in a deeper decoder
        max_new_tokens=12,
        eos_token_id=VOCABULARY.last,
        pad_token_id=VOCABULARY.pad,
        **settings,
    )[0].tolist()[1:]
    return found[: found.index(VOCABULARY.last)] if VOCABULARY.last in found else found


@pytest.mark.parametrize("name", SHAPES)
def test_generation_is_theirs(name, tmp_path):
    """Greedy, all sources at once, and beams, against `generate` one by one."""
    model = random_model(SHAPES[name])
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    engine = Engine.of(model, "float32", 64)
    sources = [piece.numpy() for piece in pieces(random_sequences(SOURCES, 1))]
    prompts = [np.array([VOCABULARY.first])] * len(sources)
    how, last = Decoding(max_tokens=12), VOCABULARY.last
    *_, found = continuations(
        engine, prompts, how, ends=[last], stop=lambda *_: False, sources=sources
    )
    for one, source in zip(found, sources, strict=True):
        assert one.ids == _their_generation(theirs, torch.from_numpy(source))
    for penalty in (1.0, 0.6):
        how = Decoding(max_tokens=12, beams=4, length_penalty=penalty)
        best = beam_search(engine, prompts[:3], how, ends=[last], sources=sources[:3])
        for source, one in zip(sources[:3], best, strict=True):
            expected = _their_generation(
                theirs, torch.from_numpy(source), num_beams=4, length_penalty=penalty
            )
            assert one[0].ids == expected


def test_a_decoder_that_begins_with_another_token_is_refused(tmp_path, papers):
    tokenizer = firth.Tokenizer.train(papers[:20], "unigram", 300, sentinels=10)
    config = replace(SHAPES["v1.0"], vocab_size=tokenizer.vocabulary.size)
    firth.LanguageModel(random_model(config), tokenizer).save(tmp_path)
    assert isinstance(firth.load(tmp_path), firth.LanguageModel)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["decoder_start_token_id"] += 1
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="decoder_start_token_id"):
        firth.load(tmp_path)
