"""The text of the benchmarks: real, prepared once, kept in the system's folder for temporary files.

The text is `english-10m` and SST-2 of the folder `shared/data` beside the repository where it is
there, else the papers and sentences of `firth demo`.
"""

import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from firth.text.corpus import Corpus
from firth.text.shards import write_shards
from firth.text.tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
DEMO = ROOT / "src" / "firth" / "demo_data"
_MAKERS = [ROOT / "benchmarks" / f"{name}.py" for name in ("data", "peers")]
_MAKERS += sorted((ROOT / "benchmarks").glob("bench_*.py"))
_STATE = hashlib.sha256(b"".join(maker.read_bytes() for maker in _MAKERS)).hexdigest()[:8]
CACHE = Path(tempfile.gettempdir()) / "firth-benchmarks" / _STATE
"""Of what this state of the scripts makes: a changed script makes its own anew."""
SEQUENCE = 128
"""Tokens of a pre-training sequence, special tokens included."""


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder of the cache; `make` writes it where it is missing."""
    path = CACHE / (name if SHARED.is_dir() else f"demo-{name}")
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        make(temporary)
        temporary.rename(path)
    return path


def plain_text(source: Path) -> Path:
    """A compressed text file, decompressed."""

    def write(path: Path) -> None:
        if source.suffix == ".gz":
            content = gzip.decompress(source.read_bytes())
        else:
            import zstandard

            with source.open("rb") as file:
                content = zstandard.ZstdDecompressor().stream_reader(file).read()
        path.write_bytes(content)

    return cached(source.with_suffix("").name, write)


def text_files() -> list[Path]:
    """All the text there is, decompressed."""
    found = sorted((SHARED / "english-10m").glob("*.train.txt.zst"))
    return [plain_text(source) for source in found or [DEMO / "papers.txt.gz"]]


def pretraining_text() -> Path:
    """One file to pre-train on: English Wikipedia, a paragraph a line."""
    source = SHARED / "english-10m" / "wikipedia.train.txt.zst"
    return plain_text(source if source.is_file() else DEMO / "papers.txt.gz")


def tokenizer_folder(vocab_size: int, sentinels: int = 0) -> Path:
    """A WordPiece tokenizer of that text, which `transformers` loads too."""

    def write(path: Path) -> None:
        corpus = Corpus.from_files(pretraining_text())
        tokenizer = Tokenizer.train(corpus, "wordpiece", vocab_size, sentinels=sentinels)
        tokenizer.save(path, model_max_length=512)

    return cached(f"wordpiece-{_name(vocab_size, sentinels)}", write)


def _name(vocab_size: int, sentinels: int) -> str:
    return f"{vocab_size}-s{sentinels}" if sentinels else str(vocab_size)


def shards_folder(vocab_size: int, sentinels: int = 0) -> Path:
    """The text as firth's token files, in documents of a million characters.

    So, as in the blocks of `run_mlm`, nearly all sequences have the full length.
    """

    def write(path: Path) -> None:
        corpus = Corpus.from_files(pretraining_text(), documents="file")
        write_shards(corpus, Tokenizer.load(tokenizer_folder(vocab_size, sentinels)), path)

    return cached(f"shards-{_name(vocab_size, sentinels)}", write)


def blocks_folder(vocab_size: int, sentinels: int = 0, length: int = SEQUENCE) -> Path:
    """The text as a `datasets` folder of blocks of `length` tokens, as `run_mlm` makes them."""

    def write(path: Path) -> None:
        from peers import blocks_of_text, load_tokenizer

        tokenizer = load_tokenizer(tokenizer_folder(vocab_size, sentinels))
        scratch = path.with_name(f"{path.name}-scratch")
        blocks = blocks_of_text([pretraining_text()], tokenizer, scratch, length=length)
        blocks.save_to_disk(str(path))
        shutil.rmtree(scratch)

    name = f"blocks-{_name(vocab_size, sentinels)}"
    return cached(name if length == SEQUENCE else f"{name}-{length}", write)


def labelled_sentences(count: int) -> Path:
    """A tsv file of `count` labelled sentences: the first of SST-2's training part."""

    def write(path: Path) -> None:
        source = SHARED / "glue" / "sst-2" / "train.tsv.gz"
        with gzip.open(source if source.is_file() else DEMO / "roles.train.tsv.gz", "rt") as file:
            lines = file.readlines()
        path.write_text("".join(lines[: count + 1]), encoding="utf-8")

    return cached(f"sentences-{count}.tsv", write)


def mixed_texts(count: int, tokenizer: Tokenizer, longest: int = 450) -> list[str]:
    """Stretches of running text of mixed lengths: about 35 tokens in the mean, few much longer."""
    rng = np.random.default_rng(1)
    wanted = np.exp(rng.normal(np.log(24), 0.97, count)).round().clip(4, longest).astype(int)
    wanted[0] = longest
    words = pretraining_text().read_text(encoding="utf-8").split()
    begins = rng.integers(0, len(words) - longest, count)
    long = [" ".join(words[b : b + n]) for b, n in zip(begins.tolist(), wanted, strict=True)]
    found = []
    for text, encoding, tokens in zip(long, tokenizer.encode_batch(long), wanted, strict=True):
        end = min(int(tokens), len(encoding.ids)) - 2
        found.append(text[: encoding.offsets[end, 1]])
    return found
