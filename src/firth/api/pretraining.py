"""`pretrain`: from a corpus to a run directory, in steps that a killed run takes up again."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from firth.api.continuing import Given, check_given, own_tokenizer, tokenizer_beside
from firth.api.language_model import LanguageModel, show_words
from firth.api.model_card import is_recurrent, keep_card, model_card
from firth.api.run_directory import (
    begin,
    finished_without_checkpoints,
    keep_recipe,
    only_writer,
    read_recipe,
    refuse_foreign,
)
from firth.api.static_training import check_word_vectors, train_static
from firth.api.training_text import (
    AnyCorpus,
    TrainingText,
    all_texts,
    check_documents,
    check_text,
    open_training_text,
    some_texts,
    warn_of_few,
    write_training_text,
)
from firth.atomic import output_path
from firth.device import pick_device, prepare_process
from firth.errors import ConfigError, DataError
from firth.inference.forward import Engine
from firth.inference.samples import continued_texts, filled_blanks, written_texts
from firth.interop.huggingface import load_model, save_model
from firth.models import EncoderDecoderConfig, GPTConfig, LanguageModelNetwork, build
from firth.objectives import (
    CausalLM,
    Objective,
    SentencePairs,
    SequenceToSequence,
    SpanBoundary,
    WordContext,
)
from firth.protocols import Vocabulary
from firth.recipes import Recipe
from firth.text.annotations import Annotator, annotator
from firth.text.batches import ObjectiveBatches, random_stream
from firth.text.tokenizers import Tokenizer
from firth.text.vocabulary_report import vocabulary_report
from firth.training import HeldOut, Run, State, steps_within, train
from firth.training.distributed import Ranks, join, leave, wait
from firth.training.undisturbed import undisturbed

logger = logging.getLogger(__name__)

_VALID_SEED, _SAMPLE_SEED = 7, 8

_REPORTED = 1_000_000
"""Characters of held-out text that the vocabulary report looks at."""


def pretrain(
    recipe: Recipe,
    corpus: AnyCorpus,
    output: str | Path,
    *,
    valid: AnyCorpus | None = None,
    tokenizer: Tokenizer | None = None,
    start: LanguageModel | None = None,
    vectors: LanguageModel | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    resume_hint: str = "call pretrain again with the same arguments",
) -> LanguageModel:
    """Trains a language model on a corpus, or goes on where an earlier call stopped.

    Args:
        recipe: model, objective, data and training (see `firth.recipes`).
        corpus: the text, or pairs of texts for a recipe that learns sequence to sequence.
        output: the run directory; it becomes a model that `firth.load` reads.
        valid: held-out text; by default `recipe.data.valid` of the documents.
        tokenizer: an existing one instead of one trained on the corpus.
        start: a trained model to go on from, with its tokenizer and shape; of the recipe's model
            the dropouts count.
        vectors: word vectors that the tokens begin with, in place of random ones; those of pieces
            of words have a tokenizer, which is the run's.
        device: "auto", "cpu", "cuda", ...
        tensorboard: also write TensorBoard files (extra `track`).
        resume_hint: what to tell the user after an interruption.

    Returns:
        The trained model.

    Raises:
        ConfigError: if `output` holds a run with other settings, another process trains there, the
            recipe has no budget, or `tokenizer`, `start` or `vectors` do not suit it or each other.
        DataError: if the corpus cannot be read, or is not the one that the run was begun with.
        DivergedError: if training breaks down.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved.
    """
    run = output_path(output)
    prepare_process()
    check_given(recipe, start, tokenizer)
    if start is not None:
        name = str(start.path or "a model in memory")
        recipe = recipe.started_from(start.model.config, name, start.max_length)
        tokenizer = own_tokenizer(start, name, tokenizer)
    if vectors is not None:
        tokenizer = tokenizer_beside(vectors, recipe, start, tokenizer)
        recipe = replace(recipe, vectors=str(vectors.path or "words in memory"))
    given = Given(start, tokenizer, vectors)
    check_text(recipe, corpus, valid)
    if isinstance(recipe.objective, WordContext):
        check_word_vectors(recipe, corpus)
    ranks, torch_device = _join(recipe, device)
    with only_writer(run) if ranks.first else nullcontext():
        if ranks.first:
            _prepare(run, recipe, corpus, valid, given)
        wait(ranks)
        if not finished_without_checkpoints(run):
            with undisturbed(torch_device):
                _train(run, _How(ranks, torch_device, tensorboard, resume_hint, given))
    leave()
    loaded = load_model(run)  # the averaged weights, where they are kept
    return LanguageModel(
        loaded.model.to(torch_device), Tokenizer.load(run), run, record=loaded.firth
    )


def _join(recipe: Recipe, device: str) -> tuple[Ranks, torch.device]:
    ranks, torch_device = join(pick_device(device))
    if isinstance(recipe.objective, WordContext) and ranks.world > 1:
        leave()
        raise ConfigError(
            "word vectors are trained by the threads of one process; start it without torchrun"
        )
    if recipe.data.packing == "streams" and ranks.world > 1:
        leave()
        raise ConfigError("streams carry their state on; train in one process, without torchrun")
    return ranks, torch_device


def _prepare(
    run: Path,
    recipe: Recipe,
    corpus: AnyCorpus,
    valid: AnyCorpus | None,
    given: Given,
) -> None:
    """Tokenizer, shards and the resolved recipe: whatever is not there yet."""
    if split := valid is None:
        corpus, valid = corpus.split(valid=recipe.data.valid, seed=recipe.training.seed)
    corpora: dict[str, AnyCorpus] = {"train": corpus, "valid": valid}
    refuse_foreign(run, corpora)
    begun = begin(run, recipe, corpora, given.hashes())
    tokenizer = _tokenizer(run, recipe, (corpus, valid), given.tokenizer)
    segments = recipe.model.num_segments > 1
    tokenizer.save(run, model_max_length=recipe.max_length, segments=segments)
    find = _annotator(recipe, corpus)
    for part, documents in corpora.items():
        write_training_text(documents, tokenizer, run, part, find)
        text = open_training_text(run, part, recipe)
        logger.info("%s text: %s", part, text.describe())
        if part == "train":
            check_documents(recipe, text.num_documents)
        elif split:
            warn_of_few(text.num_documents)
    if not begun:
        keep_recipe(run, recipe.with_vocabulary(tokenizer.vocabulary))


def _annotator(recipe: Recipe, corpus: AnyCorpus) -> Callable[[], Annotator] | None:
    """What marks the spans of all parts, learned from the training text when it is asked for."""
    if recipe.data.spans == "none":
        return None
    texts = all_texts(corpus, recipe.data.smoothing)
    return cache(lambda: annotator(recipe.data.spans, texts))


def _tokenizer(
    run: Path, recipe: Recipe, corpora: tuple[AnyCorpus, AnyCorpus], given: Tokenizer | None
) -> Tokenizer:
    """That of the run, or the given one, or one trained on the corpus."""
    given = given and _fitting(given, recipe)
    if not (run / "tokenizer.json").is_file():
        return given or _fitting(_train_tokenizer(recipe, *corpora), recipe)
    own = Tokenizer.load(run)
    if given is not None and given.content_hash != own.content_hash:
        raise ConfigError(
            f"{run} has a tokenizer of its own ({own.vocabulary.size} tokens), which is not the "
            f"one given ({given.vocabulary.size} tokens); leave the tokenizer out to go on with "
            "the run, or choose another directory with -o"
        )
    return own


def _fitting(tokenizer: Tokenizer, recipe: Recipe) -> Tokenizer:
    """The tokenizer as a model of this recipe needs it: streams have one token between texts."""
    return tokenizer.opened_by_last() if recipe.data.packing == "streams" else tokenizer


def _train_tokenizer(recipe: Recipe, corpus: AnyCorpus, valid: AnyCorpus) -> Tokenizer:
    settings = recipe.tokenizer
    what = settings.kind, settings.vocab_size
    logger.info("training a %s tokenizer of %d tokens; what it makes of held-out text:", *what)
    tokenizer = Tokenizer.train(
        all_texts(corpus, recipe.data.smoothing),
        kind=settings.kind,
        vocab_size=settings.vocab_size,
        lowercase=settings.lowercase,
        strip_accents=settings.strip_accents,
        max_bytes=settings.max_bytes,
        min_frequency=settings.min_frequency,
        sentinels=settings.sentinels,
    )
    for name, value in vocabulary_report(tokenizer, some_texts(valid, _REPORTED)).rows():
        logger.info("    %s: %s", name, value)
    return tokenizer


def _new_model(recipe: Recipe, tokenizer: Tokenizer, device: torch.device) -> LanguageModelNetwork:
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model).to(device)
    show_words(model, tokenizer)
    return model


@dataclass(frozen=True)
class _How:
    ranks: Ranks
    device: torch.device
    tensorboard: bool
    resume_hint: str
    given: Given


def _fix_steps(run: Path, recipe: Recipe, text: dict[str, TrainingText], how: _How) -> Recipe:
    """Turns the budget into a number of steps, once for the life of the run."""
    training, tokenizer = recipe.training, Tokenizer.load(run)
    if training.steps is not None:
        return recipe
    packed = text["train"].batches(recipe, tokenizer.vocabulary, training.seed)
    total = training.fixed_steps(packed.steps_per_epoch, packed.tokens_per_epoch)
    if total is None:
        assert training.minutes is not None
        logger.info("measuring throughput")
        total = steps_within(
            training.minutes,
            _new_model(recipe, tokenizer, how.device),
            recipe.objective,
            ObjectiveBatches(packed, recipe.objective),
            training,
            ranks=how.ranks,
            valid=_held_out(text["valid"], recipe, tokenizer.vocabulary),
            valid_objective=recipe.objective.for_validation(),
        )
    fixed = replace(training, steps=total, tokens=None, epochs=None, minutes=None)
    recipe = replace(recipe, training=fixed)
    if how.ranks.first:
        keep_recipe(run, recipe)
    wait(how.ranks)
    return read_recipe(run)


def _train(run: Path, how: _How) -> None:
    recipe = read_recipe(run)
    wait(how.ranks)  # the first process puts the number of steps there once all have read it
    text = {part: open_training_text(run, part, recipe) for part in ("train", "valid")}
    if isinstance(recipe.objective, WordContext):
        keep = partial(keep_recipe, run)
        train_static(
            run, recipe, text, tensorboard=how.tensorboard, resume_hint=how.resume_hint, keep=keep
        )
    else:
        recipe = _fix_steps(run, recipe, text, how)
        _train_network(run, recipe, text, how)


def _train_network(run: Path, recipe: Recipe, text: dict[str, TrainingText], how: _How) -> None:
    tokenizer = Tokenizer.load(run)
    training, vocabulary = recipe.training, tokenizer.vocabulary
    assert training.steps is not None
    packed = text["train"].batches(recipe, vocabulary, training.seed)
    model = _new_model(recipe, tokenizer, how.device)
    how.given.put_into(model, tokenizer)
    if how.ranks.first:
        _announce(recipe, model, packed.steps_per_epoch, how.device)

    def export(trained: nn.Module) -> None:
        assert isinstance(trained, LanguageModelNetwork)
        record = {"recipe": recipe.name, "max_length": recipe.max_length}
        save_model(run, trained, vocabulary=vocabulary, firth=record)
        keep_card(run, model_card(run, recipe, text))

    plan = Run(
        path=run,
        total_steps=training.steps,
        valid=_held_out(text["valid"], recipe, vocabulary),
        valid_objective=recipe.objective.for_validation(),
        unigram_entropy=_entropy(text["train"], recipe.objective),
        sample=_sampler(text["valid"], tokenizer, recipe),
        export=export,
        resume_hint=how.resume_hint,
        tensorboard=how.tensorboard,
        ranks=how.ranks,
    )
    batches = ObjectiveBatches(packed, recipe.objective, total_steps=training.steps)
    train(State.begin(model, training), recipe.objective, batches, training, plan)


def _entropy(text: TrainingText, objective: Objective) -> float | None:
    """The unigram entropy of the text, where the loss of training compares with it: where it is the
    cross-entropy of tokens and nothing else.
    """
    more = isinstance(objective, SentencePairs | SpanBoundary)
    if isinstance(objective, SequenceToSequence):
        more = objective.label_smoothing > 0
    elif isinstance(objective, CausalLM):
        more = objective.ar > 0 or objective.tar > 0
    return None if more else text.unigram_entropy


def _held_out(text: TrainingText, recipe: Recipe, vocabulary: Vocabulary) -> dict[str, HeldOut]:
    """Batches of the held-out text of each language."""
    found, parts = {}, text.languages
    for name, part in parts.items():
        try:
            packed = part.batches(recipe, vocabulary, _VALID_SEED, training=False)
        except DataError as error:
            raise DataError(
                f"the held-out text{name and f' of {name}'}: {error}. Hold out more (data.valid, "
                f"now {recipe.data.valid:g}), or give other text for it (--valid, valid=)"
            ) from error
        enough = recipe.data.valid_tokens // len(parts) // recipe.training.batch_tokens
        batches = ObjectiveBatches(packed, recipe.objective.for_validation())
        found[name] = HeldOut(batches, min(packed.steps_per_epoch, max(1, enough)))
    return found


def _announce(recipe: Recipe, model: nn.Module, steps_per_epoch: int, device: torch.device) -> None:
    steps = recipe.training.steps or 0
    logger.info(
        "%s: %s parameters, %s steps of %s tokens, %.1f epochs, on %s",
        recipe.name,
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{steps:,}",
        f"{recipe.training.batch_tokens:,}",
        steps / steps_per_epoch,
        device,
    )
    schedule = recipe.training.schedule
    if (warm := schedule.warmup_steps(steps)) >= steps:
        logger.warning(
            "the warm-up takes %s steps, and the run has %s: the learning rate rises to the end "
            "and never falls; set training.schedule.warmup to a share of the steps, such as 0.06",
            f"{warm:,}",
            f"{steps:,}",
        )


def _sampler(
    text: TrainingText, tokenizer: Tokenizer, recipe: Recipe, count: int = 3
) -> Callable[[nn.Module], list[str]] | None:
    """Shows what the model makes of a few held-out texts; None where there is nothing to show."""
    rng = random_stream(_SAMPLE_SEED, 0, 0)
    shards = text.shards if text.source is None else text.source
    starts = shards.document_starts
    chosen = rng.permutation(len(starts) - 1)[:count]
    begins = [int(starts[i]) for i in chosen]
    room = recipe.data.max_length - 2
    longest = min(16, room) if text.source is None else room
    ends = [min(int(starts[i + 1]), int(starts[i]) + longest) for i in chosen]
    texts = [np.array(shards.tokens(a, b)) for a, b in zip(begins, ends, strict=True)]
    backward = getattr(recipe.objective, "backward", False)
    if backward or (text.source is None and isinstance(recipe.model, EncoderDecoderConfig)):
        return None

    def sample(model: nn.Module) -> list[str]:
        engine = Engine.of(model, recipe.training.precision, recipe.model.max_length)
        if text.source is not None:
            return written_texts(engine, tokenizer, texts)
        if isinstance(recipe.model, GPTConfig) or is_recurrent(recipe):
            return continued_texts(engine, tokenizer, texts)
        return filled_blanks(engine, tokenizer, texts, random_stream(_SAMPLE_SEED, 0, 1))

    return sample
