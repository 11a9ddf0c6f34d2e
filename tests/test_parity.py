"""The same numbers as `transformers`, in float32 to 1e-5: bricks, encoders, heads, gradients."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from firth.interop.huggingface import load_model, save_model, stock_family, stock_head
from firth.models.attention import Mask, Scores, attend
from firth.models.bert import SIZES, Bert, BertConfig
from firth.models.layers import FeedForward
from firth.models.layout import Layout
from firth.models.positions import rotary_tables, rotate
from firth.protocols import Batch
from tests.reference import (
    FAMILIES,
    VOCABULARY,
    distance,
    encoder_errors,
    measure,
    padded_and_packed,
    reference_config,
    reference_model,
    reload_theirs,
    save,
    transformers,
)

TOLERANCE = 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_family_agrees_in_both_directions(family, record_property):
    errors = measure(family)
    assert len(errors) == 6
    for (what, direction), error in errors.items():
        record_property(f"{what}, {direction}", error)
        assert error <= TOLERANCE, (what, direction)


SHAPE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "intermediate_size": 40,
    "max_length": 40,
}
MODERN = {
    "num_segments": 0,
    "norm": "pre",
    "positions": "rotary",
    "gated": True,
    "bias": False,
    "norm_eps": 1e-5,
}
SHAPES = {
    # global_every has no effect in this shape, and still comes back.
    "bert": BertConfig(**SHAPE, num_segments=1, norm_eps=1e-7, dropout=0.2, global_every=7),
    "roberta": BertConfig(**SHAPE, num_segments=2, position_offset=2),
    "distilbert": BertConfig(**SHAPE, num_segments=0),
    "modernbert": BertConfig(**SHAPE, **MODERN, local_window=3, global_every=2, rotary_base=500.0),
    "modernbert without local layers": BertConfig(**SHAPE, **MODERN, rotary_base=77.0),
    "modernbert without global layers but one": BertConfig(
        **SHAPE, **MODERN, local_window=5, global_every=9, rotary_base_global=900.0
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_of_ours_computes_the_same_there(name, tmp_path):
    config = SHAPES[name]
    assert stock_family(config) == name.split()[0]
    torch.manual_seed(3)
    model = Bert(config, pooler=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    loaded = load_model(tmp_path)
    assert loaded.model.config == config
    for error in encoder_errors(loaded, reload_theirs(tmp_path, "MaskedLM")).values():
        assert error <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_theirs_bit_for_bit(family, tmp_path):
    """Read and written again, every tensor has the same name and the same bits; twice likewise."""
    for kind in ("MaskedLM", "SequenceClassification"):
        model = reference_model(kind, reference_config(family))
        model.save_pretrained(tmp_path / "theirs")
        save(tmp_path / "ours", load_model(tmp_path / "theirs"))
        theirs = load_file(tmp_path / "theirs" / "model.safetensors")
        ours = load_file(tmp_path / "ours" / "model.safetensors")
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)

        first, again = load_model(tmp_path / "theirs"), load_model(tmp_path / "ours")
        assert first.model.config == again.model.config
        assert again.firth == {"recipe": "test"}
        assert (first.labels, first.problem_type) == (again.labels, again.problem_type)
        assert (
            (first.family, first.lm_head)
            == (again.family, again.lm_head)
            == (family, kind == "MaskedLM")
        )
        kept = [n for n in first.model.state_dict() if first.lm_head or not n.startswith("head.")]
        for name in kept:
            assert torch.equal(first.model.state_dict()[name], again.model.state_dict()[name])


def test_the_comparison_sees_a_window_one_wider(tmp_path):
    model = reference_model("MaskedLM", reference_config("modernbert"))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.model.config.local_window == 4
    for layer in loaded.model.layers:
        if layer.attention.mask.window is not None:
            layer.attention.mask = Mask(window=5)
    assert encoder_errors(loaded, model)["hidden states"] > 1e-2


@pytest.mark.parametrize(("pooling", "theirs"), [("first", "cls"), ("mean", "mean")])
def test_modernbert_pooling_in_both_directions(pooling, theirs, tmp_path):
    model = reference_model(
        "SequenceClassification", reference_config("modernbert", classifier_pooling=theirs)
    )
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.head is not None
    assert loaded.head.pooling == pooling
    save(tmp_path, loaded)
    padded, packed = padded_and_packed()
    again = reload_theirs(tmp_path, "SequenceClassification")
    with torch.no_grad():
        scores = loaded.head(loaded.model(packed).last, packed.starts)
        assert distance(scores, model(**padded).logits) <= TOLERANCE
        assert distance(scores, again(**padded).logits) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_lm_loss_and_its_gradients(family, tmp_path):
    """Cross-entropy at the predicted positions alone, against theirs over all with labels -100."""
    model = reference_model("MaskedLM", reference_config(family))
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path).model
    padded, packed = padded_and_packed(segments=getattr(model.config, "type_vocab_size", 1))
    chosen = torch.arange(packed.num_tokens) % 4 == 1
    targets = (packed.input_ids + 7) % VOCABULARY.size
    labels = torch.full_like(padded["input_ids"], -100)
    labels[padded["attention_mask"].bool()] = torch.where(chosen, targets, -100)
    model(**padded, labels=labels).loss.backward()

    hidden = ours(packed).last[chosen]
    (ours.prediction_loss(hidden, targets[chosen]) / int(chosen.sum())).backward()
    with torch.no_grad():  # their gradients under our names, by the way that weights take
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path)
    theirs = dict(load_model(tmp_path).model.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        scale = max(float(theirs[name].detach().abs().max()), 1e-3)
        assert distance(parameter.grad, theirs[name]) <= TOLERANCE * scale, name


@pytest.mark.parametrize("window", [None, 0, 2, 100])
def test_attention_against_scaled_dot_product(window):
    lengths, heads, size = (9, 1, 6, 9), 3, 4
    starts = torch.tensor([0, *lengths]).cumsum(0)
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, heads, size, requires_grad=True)
    before = qkv.detach().clone()
    wanted = []
    for part in qkv.split(lengths):
        q, k, v = part.permute(1, 2, 0, 3)  # (H, S, K) each
        place = torch.arange(part.shape[0])
        seen = (place[:, None] - place).abs() <= (10**6 if window is None else window)
        wanted.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1))
    reference = torch.cat(wanted)
    weights = torch.randn_like(reference)
    (d_reference,) = torch.autograd.grad((reference * weights).sum(), qkv)
    heads, size = qkv.shape[2:]
    how = Scores(num_heads=heads, num_groups=heads, mask=Mask(window=window), scale=size**-0.5)
    found = attend(qkv.flatten(1, 2), Layout.of(starts, qkv.device), how)
    (d_found,) = torch.autograd.grad((found * weights).sum(), qkv)
    assert distance(found, reference) <= TOLERANCE
    assert distance(d_found, d_reference) <= TOLERANCE
    assert torch.equal(qkv, before)


def test_rotary_positions():
    from transformers.models.modernbert.modeling_modernbert import (
        ModernBertRotaryEmbedding,
        apply_rotary_pos_emb,
    )

    config = reference_config("modernbert", hidden_size=48)
    positions = torch.tensor([0, 1, 2, 17, 8000])
    torch.manual_seed(0)
    qkv = torch.randn(5, 3, 3, 16)
    for kind, theta in (("full_attention", 160_000.0), ("sliding_attention", 10_000.0)):
        cos, sin = ModernBertRotaryEmbedding(config)(qkv, positions[None], kind)
        q, k, _ = qkv.permute(1, 2, 0, 3)[:, None]  # (1, H, N, K) each
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        tables = rotary_tables(positions, 16, theta)
        turned = rotate(qkv.flatten(1, 2), tables, 6).view_as(qkv)
        near = positions < 100
        for part, wanted in ((0, q), (1, k)):
            wanted = wanted[0].transpose(0, 1)
            assert distance(turned[near, part], wanted[near]) <= TOLERANCE
            assert distance(turned[:, part], wanted) <= 2e-3  # 8000 radians in float32
        assert torch.equal(turned[:, 2], qkv[:, 2])


def test_gated_feed_forward():
    from transformers.models.modernbert.modeling_modernbert import ModernBertMLP

    torch.manual_seed(0)
    theirs = ModernBertMLP(reference_config("modernbert"))
    ours = FeedForward(24, 40, activation="gelu", gated=True, bias=False)
    ours.load_state_dict({"up.weight": theirs.Wi.weight, "down.weight": theirs.Wo.weight})
    x = torch.randn(7, 24)
    assert distance(ours(x), theirs(x)) <= TOLERANCE


@pytest.mark.parametrize("pair", [(3, 25), (25, 3)])
def test_padding_changes_nothing(pair, tmp_path):
    """A sequence alone and one beside another: theirs with padding, ours in one batch."""
    reference_model("MaskedLM", reference_config("bert")).save_pretrained(tmp_path)
    model = load_model(tmp_path).model
    _, packed = padded_and_packed()
    ids = packed.input_ids[: sum(pair)]
    starts = torch.tensor([0, *pair]).cumsum(0)
    together = model(Batch(input_ids=ids, starts=starts)).last
    alone = [
        model(Batch(input_ids=part, starts=torch.tensor([0, len(part)]))).last
        for part in ids.split(pair)
    ]
    assert distance(together, torch.cat(alone)) <= TOLERANCE


COUNTS = {"base": 109_482_240, "large": 335_141_888}


@pytest.mark.parametrize("size", SIZES)
def test_number_of_parameters(size):
    config = BertConfig(vocab_size=30_522, **SIZES[size])
    with torch.device("meta"):
        ours = Bert(config)
        theirs = transformers.BertModel(
            transformers.BertConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate_size,
            )
        )
    count = sum(p.numel() for p in ours.parameters()) - sum(
        p.numel() for p in ours.head.parameters()
    )
    assert count == sum(p.numel() for p in theirs.parameters())
    assert count == COUNTS.get(size, count)


def test_number_of_parameters_of_modernbert_and_its_classifier():
    published = transformers.ModernBertConfig(num_labels=3)
    config = BertConfig(
        vocab_size=50_368,
        **{**SIZES["base"], "num_layers": 22, "intermediate_size": 1152},
        **MODERN,
        local_window=64,
    )
    with torch.device("meta"):
        ours, head = Bert(config), stock_head(config, 3, 0.0)
        masked = transformers.ModernBertForMaskedLM(published)
        classifier = transformers.ModernBertForSequenceClassification(published)

    def count(*modules) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(ours) == count(masked) == 149_655_232
    assert count(ours) - count(ours.head) + count(head) == count(classifier)


def test_pooler_is_kept_and_read_by_the_bare_class(tmp_path):
    """`AutoModel` finds it; the masked-LM class, which has none, reports these two names."""
    torch.manual_seed(0)
    model = Bert(SHAPES["bert"])
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    bare, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.pooler is not None
    assert torch.equal(bare.pooler.dense.weight, model.pooler.weight)
    _, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    again = load_model(tmp_path).model
    assert again.pooler is not None
    assert torch.equal(again.pooler.bias, model.pooler.bias)
    assert load_model(tmp_path).model.config == SHAPES["bert"]
