"""Tiny random models of `transformers`, and the distance between them and ours.

Not a test: `test_parity.py` asserts on these numbers and `benchmarks/parity.py` prints them.
"""

import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import nn

from firth.interop.huggingface import LoadedModel, load_model, save_model
from firth.protocols import Batch, Vocabulary

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

FAMILIES = ("bert", "roberta", "distilbert", "modernbert")
VOCAB_SIZE = 61
LENGTHS = (30, 3, 17, 29, 1, 8)
"""Unequal, several longer than ModernBERT's window, two in one length group of ours."""

VOCABULARY = Vocabulary(
    size=VOCAB_SIZE, pad=1, unknown=4, first=0, last=2, mask=3, special=(0, 1, 2, 3, 4)
)

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}


def reference_config(family: str, **changes):
    """A small configuration of theirs, with sizes that are easy to confuse all different."""
    special = {
        "bert": {"type_vocab_size": 3},
        "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
        "distilbert": {},
        "modernbert": {
            "local_attention": 8,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "cls_token_id": 0,
            "sep_token_id": 2,
        },
    }[family]
    sizes = dict(_SIZES)
    if family == "distilbert":
        sizes |= {"dim": 24, "n_layers": 5, "n_heads": 3, "hidden_dim": 40}
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            del sizes[key]
    return transformers.AutoConfig.for_model(family, **{**sizes, **special, **changes})


def reference_model(kind, config, *, seed: int = 0):
    """A model of theirs with weights large enough for errors to show, also in biases and norms.

    Args:
        kind: "MaskedLM", "SequenceClassification", "PreTraining" or "" for the encoder alone.
        config: theirs.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    name = f"AutoModelFor{kind}" if kind else "AutoModel"
    model = getattr(transformers, name).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(std=0.15)
    return model.eval()


def padded_and_packed(*, segments: int = 1) -> tuple[dict[str, torch.Tensor], Batch]:
    """The same token ids padded at the right for them and end to end for us."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, VOCAB_SIZE, (n,), generator=generator) for n in LENGTHS]
    kinds = [torch.randint(segments, (n,), generator=generator) for n in LENGTHS]
    pad = nn.utils.rnn.pad_sequence
    padded = {
        "input_ids": pad(ids, batch_first=True, padding_value=VOCABULARY.pad),
        "attention_mask": pad([torch.ones_like(x) for x in ids], batch_first=True),
    }
    if segments > 1:
        padded["token_type_ids"] = pad(kinds, batch_first=True)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    packed = Batch(
        input_ids=torch.cat(ids),
        starts=starts,
        segments=torch.cat(kinds) if segments > 1 else None,
    )
    return padded, packed


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Maximum absolute error."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max())


@torch.no_grad()
def encoder_errors(loaded: LoadedModel, model) -> dict[str, float]:
    """Errors of the masked-LM scores and of all L+1 hidden states."""
    padded, packed = padded_and_packed(segments=getattr(model.config, "type_vocab_size", 1))
    theirs = model(**padded, output_hidden_states=True)
    real = padded["attention_mask"].bool()
    ours = loaded.model(packed, hidden_states=True)
    states = [x[real] for x in theirs.hidden_states]
    assert len(ours.hidden_states) == len(states)
    assert max(float(x.abs().max()) for x in states) > 1
    pairs = zip(ours.hidden_states, states, strict=True)
    return {
        "scores": distance(loaded.model.logits(ours.last), theirs.logits[real]),
        "hidden states": max(distance(a, b) for a, b in pairs),
    }


@torch.no_grad()
def classifier_error(loaded: LoadedModel, model) -> float:
    """Error of the sequence scores."""
    padded, packed = padded_and_packed(segments=getattr(model.config, "type_vocab_size", 1))
    assert loaded.head is not None
    theirs = model(**padded).logits
    assert float(theirs.std()) > 0.1
    return distance(loaded.head(loaded.model(packed).last, packed.starts), theirs)


def save(directory: Path, loaded: LoadedModel, **changes) -> None:
    """`save_model` of what `load_model` gave."""
    problem_type = changes.pop("problem_type", loaded.problem_type)
    save_model(
        directory,
        loaded.model,
        vocabulary=VOCABULARY,
        firth=changes.pop("firth", {"recipe": "test"}),
        head=loaded.head,
        labels=loaded.labels,
        problem_type=problem_type,
    )


def reload_theirs(directory: Path, kind: str):
    """Loads with `transformers`; every tensor must be in the file and used."""
    auto = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
    model, report = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def same_weights(ours, theirs) -> bool:
    """Whether two modules have the same tensors, bit for bit."""
    state = theirs.state_dict()
    return ours.state_dict().keys() == state.keys() and all(
        torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items()
    )


def edit_settings(directory: Path, **changes) -> None:
    """Changes keys of a saved `config.json`."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def measure(family: str) -> dict[tuple[str, str], float]:
    """Errors by what is compared and by direction ("read": theirs to ours; "written": back)."""
    errors: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "theirs", Path(folder) / "ours"
        model = reference_model("MaskedLM", reference_config(family))
        model.save_pretrained(theirs)
        loaded = load_model(theirs)
        errors |= {(what, "read"): e for what, e in encoder_errors(loaded, model).items()}
        save(ours, loaded)
        again = reload_theirs(ours, "MaskedLM")
        errors |= {(what, "written"): e for what, e in encoder_errors(loaded, again).items()}

        classifier = reference_model(
            "SequenceClassification", reference_config(family, num_labels=3)
        )
        classifier.save_pretrained(theirs)
        loaded = load_model(theirs)
        errors["classifier", "read"] = classifier_error(loaded, classifier)
        save(ours, loaded)
        again = reload_theirs(ours, "SequenceClassification")
        errors["classifier", "written"] = classifier_error(loaded, again)
    return errors
