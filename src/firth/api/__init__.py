"""The library's front door."""

import os
from pathlib import Path

from firth.api.adapted import RECORD, AdaptedModel, adapted_from
from firth.api.adapting import adapt
from firth.api.language_model import LanguageModel
from firth.api.pretraining import pretrain
from firth.api.unfinished import is_unfinished, load_unfinished
from firth.api.word_vectors import load_word_vectors
from firth.device import Precision, compute_dtype, pick_device, prepare_process
from firth.errors import CheckpointError, ConfigError
from firth.interop.allennlp import is_published_elmo, read_elmo
from firth.interop.generators import GENERATORS, end_tokens
from firth.interop.huggingface import load_model
from firth.interop.t5 import check_decoder_start
from firth.models import LanguageModelNetwork, SourceToTarget
from firth.text.tokenizers import Tokenizer


def load(
    path: str | Path, *, device: str = "auto", precision: Precision = "auto"
) -> LanguageModel | AdaptedModel:
    """Loads whatever a directory holds.

    Args:
        path: a run directory (before its end: the last checkpoint), an adapted model, a
            `transformers` directory (BERT, RoBERTa, DistilBERT, ModernBERT, GPT-2, Llama, T5; a
            classifier comes back as an `AdaptedModel`), or ELMo as it was published (`options.json`
            and `weights.hdf5`); or a file of word vectors (.vec, .txt, .bin).
        device: "auto", "cpu", "cuda", ...
        precision: of the matrix products: bfloat16 where it is fast ("auto"), or "float32".

    Raises:
        CheckpointError: if the directory holds no model.
        ConfigError: for another precision.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"expected the name of a directory or file, found {type(path).__name__}")
    path = Path(path)
    compute_dtype(precision, pick_device(device))  # before the weights are read
    if path.is_file():
        vectors, tokenizer = load_word_vectors(path)
        vectors.to(pick_device(device))
        return LanguageModel(vectors, tokenizer, path, precision, lm_head=False)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; expected a run or a model directory")
    prepare_process()
    if is_published_elmo(path):
        elmo = read_elmo(path).to(pick_device(device))
        return LanguageModel(elmo, Tokenizer.of_words([]), path, precision, lm_head=False)
    if is_unfinished(path):
        return load_unfinished(path, device=device, precision=precision)
    loaded = load_model(path)
    loaded.model.to(pick_device(device))
    if loaded.head is not None:
        loaded.head.to(pick_device(device))
    tokenizer = _tokenizer_of(path, loaded.model)
    if loaded.head is not None or (path / RECORD).is_file():
        return adapted_from(loaded, tokenizer, path, precision)
    if isinstance(loaded.model, SourceToTarget):
        check_decoder_start(path, tokenizer.vocabulary)
    record = loaded.firth
    if loaded.family in GENERATORS:
        record = record | end_tokens(path, tokenizer.vocabulary)
    return LanguageModel(loaded.model, tokenizer, path, precision, record, loaded.lm_head)


def _tokenizer_of(path: Path, model: LanguageModelNetwork) -> Tokenizer:
    """The tokenizer of a directory, which must not have more tokens than its model."""
    tokenizer = Tokenizer.load(path)
    size, rows = tokenizer.vocabulary.size, model.config.vocab_size
    if size > rows and not getattr(model, "reads_words", False):
        raise CheckpointError(
            f"{path}: the tokenizer has {size} tokens and the model {rows}; if tokens were added, "
            "resize the model with transformers' resize_token_embeddings, and save it"
        )
    return tokenizer


__all__ = ["AdaptedModel", "LanguageModel", "adapt", "load", "pretrain"]
