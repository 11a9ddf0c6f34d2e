"""`firth embed`, `firth fill`, `firth score` and `firth generate`."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from firth.atomic import need_writable
from firth.cli.models import language_model
from firth.cli.options import (
    AsJson,
    Device,
    Model,
    Texts,
    one_line,
    parse,
    print_rows,
    read_lines,
)
from firth.errors import ConfigError
from firth.inference.embedding import Layers
from firth.inference.generation import Decoding
from firth.inference.scoring import Score
from firth.protocols import ABSENT


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Vectors for each line of a file, or for its words or tokens."""

    model: Model
    file: Texts
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """A .npy file; for words and tokens NAME.units.tsv says what each row is."""
    unit: Literal["sentence", "word", "token"] = "sentence"
    """What has a vector: each line, or each of its words or tokens."""
    layers: tuple[int, ...] | Literal["all"] = (-1,)
    """Layers to keep: 0 is the embedding output, -1 the last; or all."""
    pooling: Literal["mean", "max", "first", "last"] = "mean"
    """How the tokens of a sentence become its vector."""
    column: str = "text"
    """Column of the texts in tables: a name, or a number counted from 1."""
    split: bool = False
    """Take white space as the word boundary: the file is tokenised already."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the computation; auto: bfloat16 where the processor is fast at it."""
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Fill the blanks of sentences; several blanks are filled independently."""

    model: Model
    """A masked model, or one that reads both ways."""
    texts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT [TEXT ...]")
    ]
    """Sentences with [MASK] (or the model's own mask token); - for those of stdin, one a line."""
    top_k: int = 5
    """Candidates for each blank."""
    json: AsJson = False
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class ScoreTexts:
    """How likely a model finds each line: nats, perplexity, text.

    A decoder gives log-likelihoods, a masked model pseudo-log-likelihoods.
    """

    model: Model
    file: Annotated[Texts, tyro.conf.arg(metavar="[FILE]")] = "-"
    column: str = "text"
    """Column of the texts in tables: a name, or a number counted from 1."""
    within_word: bool = False
    """Of a masked model: hide the rest of a token's word too (Kauf & Ivanova 2023)."""
    pseudo: bool = False
    """Of a hybrid model: score by filling blanks instead of left to right."""
    json: bool = False
    """One JSON object a line, with every token's log probability."""
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue texts with a decoder, or write others for them with an encoder-decoder. One text is
    printed as it comes; of several each has a line, line breaks as spaces.
    """

    model: Model
    """A decoder or an encoder-decoder."""
    texts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TEXT ...]")] = (
        "",
    )
    """Prompts, - for those of stdin, one a line; without one the model begins by itself."""
    how: Annotated[Decoding, tyro.conf.arg(name="")] = Decoding()  # noqa: RUF009  (frozen)
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A string that ends a text and is cut off; may be given several times."""
    json: bool = False
    """One JSON object a text, with every token's log probability."""
    device: Device = "auto"


_MOST_LINES = 512
"""Lines that are scored together: enough to be sorted by length."""

_MOST_CHARACTERS = 1 << 16
"""A masked model reads a text once for each of its tokens."""

_UNITS = "line\tstart\tend\tunit\n"
"""First line of the file that says what each row of vectors is."""


def _texts(given: tuple[str, ...]) -> list[str]:
    """Those of the command line, or where that is a dash the lines of stdin.

    Raises:
        ConfigError: if there are others beside the dash.
    """
    if given == ("-",):
        return read_lines("-")
    if "-" in given:
        raise ConfigError("- stands for the lines of stdin; give it alone, or only texts")
    return list(given)


def embed(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Embed, arguments, "embed")
    if options.output in ("", "-"):
        raise ConfigError("vectors are written to a file, not to stdout; give -o NAME.npy")
    target = Path(options.output)
    units = target.with_suffix(".units.tsv")
    begins = {target: np.lib.format.MAGIC_PREFIX}
    if options.unit != "sentence":
        begins[units] = _UNITS.encode()
    _check_outputs(begins, inputs=(options.file, options.model))
    model = language_model(options.model, device=options.device, precision=options.precision)
    lines = read_lines(options.file, options.column)
    texts = [line.split() for line in lines] if options.split else lines
    layers: Layers = options.layers
    if len(options.layers) == 1:
        (layers,) = options.layers
    found = model.embed(texts, unit=options.unit, layers=layers, pooling=options.pooling)
    if options.unit == "sentence":
        _write(target, found)
        if _opens_with(units, _UNITS.encode()):  # what is said there is of vectors before these
            units.unlink()
        print(f"{target}\t{'x'.join(map(str, found.shape))}")
        return
    shape = model.embed([""], layers=layers).shape[1:]
    vectors = np.concatenate([np.empty((0, *shape), np.float32), *(one.vectors for one in found)])
    _write(target, vectors)
    with units.open("w", encoding="utf-8", newline="") as file:
        file.write(_UNITS)
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")  # a unit may be a quote
        for number, one_text in enumerate(found, 1):
            for unit, (start, end) in zip(one_text.units, one_text.offsets, strict=True):
                rows.writerow((number, start, end, unit))
    print(f"{target}\t{'x'.join(map(str, vectors.shape))}\t{units}")


def _check_outputs(begins: Mapping[Path, bytes], inputs: Sequence[str]) -> None:
    """Says before the work what writing its result would run into.

    Args:
        begins: of each file to be written, how one begins that it may replace.
        inputs: files that are read.
    """
    for path, begin in begins.items():
        need_writable(path, inputs=inputs)
        if path.is_file() and path.stat().st_size and not _opens_with(path, begin):
            raise ConfigError(f"{path} is there already and holds no vectors; choose another name")


def _opens_with(path: Path, begin: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(begin)) == begin


def _write(path: Path, vectors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # given a name, numpy would change it
        np.save(file, vectors)


def fill(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Fill, arguments, "fill")
    model = language_model(options.model, device=options.device)
    texts = _texts(options.texts)
    if not texts:
        raise ConfigError('no text was given: firth fill RUN "The [MASK] was late."')
    if model.tokenizer.vocabulary.mask != ABSENT:
        mask = model.tokenizer.token(model.tokenizer.vocabulary.mask)
        texts = [text.replace("[MASK]", mask) for text in texts]
    for text, found in zip(texts, model.fill(texts, top_k=options.top_k), strict=True):
        blanks = [found] if not isinstance(found[0], list) else found
        for place, candidates in enumerate(blanks, 1):
            if options.json:
                rows = [vars(candidate) for candidate in candidates]
                record = {"text": text, "blank": place, "candidates": rows}
                print(json.dumps(record, ensure_ascii=False))
                continue
            for candidate in candidates:
                print(f"{candidate.probability:.4f}\t{candidate.token}\t{candidate.text}")


def generate(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(Generate, arguments, "generate")
    model = language_model(options.model, device=options.device)
    settings = {**vars(options.how), "stop": options.stop}
    how = options.how
    texts = _texts(options.texts)
    alone = len(texts) == 1 and options.texts != ("-",)  # of stdin, a line for each line
    if alone and how.beams == 1 and not (how.backward or options.json):
        (text,) = texts
        print(text if model.causal else "", end="", flush=True)
        for piece in model.stream(text, **settings):
            print(piece, end="", flush=True)
        print()
        return
    for one in model.generate(texts, **settings):
        if options.json:
            logs = [round(value, 4) for value in one.log_probabilities.tolist()]
            print(json.dumps({**vars(one), "log_probabilities": logs}, ensure_ascii=False))
        else:
            print(one.text if alone else one_line(one.text))


def score(arguments: Sequence[str]) -> None:
    """Runs the verb."""
    options = parse(ScoreTexts, arguments, "score")
    model = language_model(options.model, device=options.device)
    how = {"within_word": options.within_word, "pseudo": options.pseudo}
    lines = read_lines(options.file, options.column)
    count, total, method = 0, 0.0, ""
    for texts in _chunks(lines):
        scores = model.score(texts, **how)
        print_rows([_score_row(one, as_json=options.json) for one in scores], as_json=options.json)
        sys.stdout.flush()
        count += sum(len(one.tokens) for one in scores)
        total += sum(one.total for one in scores)
        method = scores[0].method
    if count:
        summary = f"{len(lines)} texts, {count} tokens, {method}"
        print(f"{summary}: perplexity {np.exp(-total / count):.3f}", file=sys.stderr)


def _score_row(one: Score, *, as_json: bool) -> dict[str, Any]:
    perplexity = one.perplexity if one.tokens else None
    row = {"nats": one.total, "perplexity": perplexity, "text": one.text}
    if as_json:
        values = [round(value, 4) for value in one.log_probabilities.tolist()]
        row |= {"method": one.method, "tokens": one.tokens, "log_probabilities": values}
    return row


def _chunks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Lines that are scored together, so that what is done is printed while the rest is at work."""
    begin = characters = 0
    for end, line in enumerate(lines, 1):
        characters += len(line)
        if end == len(lines) or end - begin == _MOST_LINES or characters >= _MOST_CHARACTERS:
            yield list(lines[begin:end])
            begin, characters = end, 0
