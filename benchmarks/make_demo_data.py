"""Makes src/firth/demo_data from the published corpora: papers and labelled sentences.

    python benchmarks/make_demo_data.py [--shared ../shared]

The rules are written out in src/firth/demo_data/README.md. The same corpora give the same text; the
same zlib gives the same bytes.
"""

import argparse
import csv
import gzip
import io
import json
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import zstandard

TARGET = Path(__file__).resolve().parents[1] / "src" / "firth" / "demo_data"
SEED = 1957
TRAIN_BYTES = 5_000_000
VALID_BYTES = 250_000
MIN_PAPERS = 3  # a word of fewer papers counts as rare
MAX_RARE = 0.02  # share of rare words above which a paper is taken for bad OCR
JUNK = {"Cc", "Cn", "Co", "Cs"}  # Unicode: control, unassigned, private, surrogate
ACCENTS = {"´": "\u0301", "¨": "\u0308"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=TARGET.parents[3] / "shared")
    data = parser.parse_args().shared / "data"
    roles = read_roles(data / "csabstruct")
    held_out = {plain(s) for part in ("dev", "test") for s, _ in roles[part] if is_long(s)}
    make_papers(data / "cl-papers", held_out)
    for part, rows in roles.items():
        write(f"roles.{part}.tsv.gz", tsv(["sentence", "label"], rows))
        labels = ", ".join(f"{label} {n}" for label, n in Counter(r[1] for r in rows).most_common())
        print(f"{part}: {len(rows)} sentences ({labels})")


def make_papers(folder: Path, held_out: set[str]) -> None:
    """Cleans both parts, chooses papers, writes them and the list that attributes them."""
    parts = {part: read_papers(folder, part) for part in ("train", "valid")}
    everything = [text for part in parts.values() for text in part.values()]
    in_papers = Counter(word for text in everything for word in set(words(text)))
    rows = []
    for part, limit in (("train", TRAIN_BYTES), ("valid", VALID_BYTES)):
        cleaned = {key: join_hyphens(text, in_papers) for key, text in parts[part].items()}
        chosen = choose(cleaned, limit, in_papers, held_out)
        text = "\n\n".join(chosen.values()) + "\n"
        write("papers.txt.gz" if part == "train" else "papers.valid.txt.gz", text)
        rows += [(key, title(paper), part) for key, paper in chosen.items()]
        print(
            f"{part}: {len(chosen)} papers, {len(text.split())} words, {len(text.encode())} bytes"
        )
    (TARGET / "papers.tsv").write_text(tsv(["id", "title", "part"], rows), encoding="utf-8")


def read_papers(folder: Path, part: str) -> dict[str, str]:
    """The cleaned papers of one part by ACL Anthology identifier."""
    with (folder / f"{part}.txt.zst").open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
    papers = text.strip("\n").split("\n\n")
    identifiers = (folder / f"{part}.ids").read_text().split()
    return {key: clean_paper(p) for key, p in zip(identifiers, papers, strict=True)}


def clean_paper(text: str) -> str:
    """Drops the second copy of the title and mends characters, line by line."""
    lines = text.split("\n")
    if len(lines) > 1 and lines[0] == f"= {lines[1]} =":
        del lines[1]
    return "\n".join(filter(None, map(clean, lines)))


def clean(line: str) -> str:
    """Accents on their letters; no control, private or unassigned characters; single spaces."""
    line = re.sub(
        r"([´¨])([^\W\d_])",
        lambda m: unicodedata.normalize("NFC", m[2] + ACCENTS[m[1]]),
        line,
    )
    spaced = " ".join(line.split())
    return "".join(c for c in spaced if unicodedata.category(c) not in JUNK)


def join_hyphens(text: str, in_papers: Counter[str]) -> str:
    """Joins a word cut at a line end ("struc- ture") where the whole is a word of other papers."""

    def join(match: re.Match[str]) -> str:
        whole = match[1] + match[2]
        return whole if in_papers[whole.lower()] >= MIN_PAPERS else match[0]

    return re.sub(r"\b([^\W\d_]+)- ([a-z]+)\b", join, text)


def choose(
    papers: dict[str, str], limit: int, in_papers: Counter[str], held_out: set[str]
) -> dict[str, str]:
    """Papers in seeded order until `limit` bytes are full."""
    order = sorted(papers)
    random.Random(SEED).shuffle(order)
    chosen: dict[str, str] = {}
    titles: set[str] = set()
    size = 0
    for key in order:
        text = papers[key]
        found = words(text)
        rare = sum(in_papers[word] < MIN_PAPERS for word in found) / len(found)
        nameless = title(text) == key or title(text) in titles
        if nameless or rare > MAX_RARE or size + len(text.encode()) > limit:
            continue
        letters = plain(text)
        if any(sentence in letters for sentence in held_out):
            continue
        chosen[key] = text
        titles.add(title(text))
        size += len(text.encode())
    return chosen


def read_roles(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Sentences with labels; an abstract that shares a sentence with a later part is left out."""
    rows: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    for part in ("test", "dev", "train"):
        kept = []
        for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
            abstract = json.loads(line)
            sentences = [clean(sentence) for sentence in abstract["sentences"]]
            if not any(plain(s) in seen for s in sentences if is_long(s)):
                kept += zip(map(open_quote, sentences), abstract["labels"], strict=True)
        rows[part] = [(sentence, label) for sentence, label in kept if sentence]
        seen |= {plain(sentence) for sentence, _ in rows[part] if is_long(sentence)}
    return {part: rows[part] for part in ("train", "dev", "test")}


def open_quote(sentence: str) -> str:
    """No cell may open with a straight quote: csv readers would take it for a quoted cell."""
    return "“" + sentence[1:].lstrip() if sentence.startswith('"') else sentence


def is_long(sentence: str) -> bool:
    return len(words(sentence)) >= 8  # below: "All rights reserved" and the like


def plain(text: str) -> str:
    return " ".join(words(text))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def title(paper: str) -> str:
    return paper.split("\n", 1)[0].strip("= ")


def tsv(header: list[str], rows: list[tuple[str, ...]]) -> str:
    buffer = io.StringIO()
    quoting = csv.QUOTE_NONE  # clean() leaves no tab and no line end inside a cell
    writer = csv.writer(
        buffer, delimiter="\t", lineterminator="\n", quoting=quoting, quotechar=None
    )
    writer.writerows([header, *rows])
    return buffer.getvalue()


def write(name: str, text: str) -> None:
    with (TARGET / name).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.encode("utf-8"))


if __name__ == "__main__":
    main()
