"""Do a model's word vectors tell senses apart? CoarseWSD-20 and the English part of MCL-WiC.

    python benchmarks/figure_senses.py RUN ../shared/data [--name senses]

Nothing is trained but the mix. CoarseWSD-20 (Loureiro et al. 2021; ten words): a test occurrence
gets the sense of the nearest training occurrence (1-NN), or of the nearest mean of a sense
(centroid), by cosine; AUC is the chance that two test occurrences of one sense are nearer than two
of different senses. All are means over the ten words. MCL-WiC (Martelli et al. 2021): two sentences
have the same sense of a word if the cosine is above a threshold, which is chosen on dev; accuracy
on test.

"static" is layer 0, the embedding output; "its sentence" the mean of the layer 0 of all words of
the sentence, the target among them; "mix" has a learned weight a layer (softmax, Peters et al.
2018, eq. 1), trained on the 8,000 training pairs of MCL-WiC, and is applied to CoarseWSD-20 as it
is. In mix and mean, layers are scaled to the same mean length first.
The correction for anisotropy is estimated on words of the training sentences. Writes
benchmarks/results/NAME.{json,md}.
"""

import argparse
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

import firth
from firth.device import prepare_process
from firth.inference.isotropy import Isotropy, directions_for

RESULTS = Path(__file__).parent / "results"
TOGETHER = 500
"""Texts embedded at a time."""
BACKGROUND = 8
"""Words of each training sentence from which mean and directions are estimated."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A word in its sentence."""

    text: str | list[str]
    start: int
    """In characters; of a list of words, in the words joined by spaces."""
    end: int


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Of n targets: (n, L+2, D), every layer and, last, the mean of the sentence's layer 0."""

    targets: torch.Tensor
    background: torch.Tensor
    """(m, L+2, D) of other words (and sentences)."""


def words_of_coarsewsd(folder: Path) -> dict[str, dict[str, tuple[list[Target], np.ndarray]]]:
    """Targets and senses of each word's parts."""
    return {
        word.name: {part: coarsewsd_part(word, part) for part in ("train", "test")}
        for word in sorted(folder.iterdir())
        if word.is_dir()
    }


def coarsewsd_part(folder: Path, part: str) -> tuple[list[Target], np.ndarray]:
    targets = []
    for line in (folder / f"{part}.data.txt").read_text("utf-8").splitlines():
        place, sentence = line.split("\t")
        words = sentence.split()
        start = sum(len(word) + 1 for word in words[: int(place)])
        targets.append(Target(text=words, start=start, end=start + len(words[int(place)])))
    senses = (folder / f"{part}.gold.txt").read_text("utf-8").split()
    assert len(senses) == len(targets)
    return targets, np.array(senses, np.int64)


def mclwic_part(folder: Path, part: str) -> tuple[list[Target], np.ndarray]:
    """Targets, two a pair, and whether the pairs have the same sense."""
    path = folder / f"{part}.en-en.data.json"
    text = (
        path.read_text("utf-8")
        if path.is_file()
        else gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()
    )
    gold = json.loads((folder / f"{part}.en-en.gold.json").read_text("utf-8"))
    tags = {one["id"]: one["tag"] == "T" for one in gold}
    targets, same = [], []
    for pair in json.loads(text):
        for side in "12":
            place = {end: int(pair[f"{end}{side}"]) for end in ("start", "end")}
            targets.append(Target(text=pair[f"sentence{side}"], **place))
        same.append(tags[pair["id"]])
    return targets, np.array(same)


def embed(lm: firth.LanguageModel, targets: list[Target]) -> Vectors:
    rng = np.random.default_rng(0)
    found, background = [], []
    for begin in range(0, len(targets), TOGETHER):
        part = targets[begin : begin + TOGETHER]
        words = lm.embed([one.text for one in part], unit="word", layers="all")
        for target, one in zip(part, words, strict=True):
            low, high = one.offsets.T
            own = (low < target.end) & (high > target.start)
            assert own.any(), target
            sentence = one.vectors[:, :1].mean(axis=0)
            chosen = rng.choice(len(one.units), min(BACKGROUND, len(one.units)), replace=False)
            found.append(np.concatenate([one.vectors[own].mean(axis=0), sentence]))
            others = one.vectors[chosen]
            context = np.repeat(sentence[None], len(others), axis=0)
            background.append(np.concatenate([others, context], axis=1))
    joined = torch.from_numpy(np.concatenate(background))
    return Vectors(targets=torch.from_numpy(np.stack(found)), background=joined)


Representation = tuple[str, torch.Tensor | int]
"""A name, and a layer or a weight for each."""


def represent(
    vectors: torch.Tensor, how: torch.Tensor | int, isotropies: list[Isotropy] | None
) -> torch.Tensor:
    """(n, D) unit vectors: one layer, or the weighted sum over layers."""
    if isinstance(how, int):
        chosen = vectors[:, how]
        if isotropies is not None:
            chosen = isotropies[how].correct(chosen, directions_for(chosen.shape[1]))
        return normalize(chosen, dim=1)
    layers = vectors[:, : len(how)]
    if isotropies is not None:
        number = directions_for(layers.shape[2])
        columns = [isotropies[i].correct(layers[:, i], number) for i in range(len(how))]
        layers = torch.stack(columns, dim=1)
    scale = layers.norm(dim=2).mean(dim=0)  # so that a weight is a layer's share
    return normalize((layers * (how / scale)[:, None]).sum(dim=1), dim=1)


def learn_mix(
    vectors: torch.Tensor, same: np.ndarray, isotropies: list[Isotropy] | None
) -> torch.Tensor:
    """(L+1) weights with which the cosine of a pair says best whether the sense is the same."""
    torch.manual_seed(0)
    weights = torch.zeros(vectors.shape[1] - 1, requires_grad=True)
    slope, threshold = (torch.tensor(value, requires_grad=True) for value in (5.0, 0.5))
    optimizer = torch.optim.Adam([weights, slope, threshold], lr=0.1)
    wanted = torch.from_numpy(same).float()
    for _ in range(60):
        both = represent(vectors, weights.softmax(0), isotropies)
        cosine = (both[::2] * both[1::2]).sum(1)
        loss = binary_cross_entropy_with_logits(slope * (cosine - threshold), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights.detach().softmax(0)


def separate(
    train: torch.Tensor, senses: np.ndarray, test: torch.Tensor, wanted: np.ndarray
) -> dict[str, float]:
    """Measures of one word."""
    similar = (test @ train.T).numpy()
    number = senses.max() + 1
    nearest = np.stack([similar[:, senses == k].max(axis=1) for k in range(number)], axis=1)
    means = torch.stack([train[torch.from_numpy(senses == k)].mean(dim=0) for k in range(number)])
    to_means = (test @ normalize(means, dim=1).T).numpy()
    shares = np.bincount(senses) / len(senses)
    one, other = np.triu_indices(len(test), k=1)
    pairs = (test @ test.T).numpy()[one, other]
    return {
        "1-NN": float(np.mean(decide(nearest, shares) == wanted)),
        "centroid": float(np.mean(decide(to_means, shares) == wanted)),
        "AUC": float(roc_auc_score(wanted[one] == wanted[other], pairs)),
    }


def decide(cosines: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The nearest sense; the more frequent one where vectors without context are all alike."""
    near = cosines >= cosines.max(axis=1, keepdims=True) - 1e-5
    return np.where(near, shares, -1).argmax(axis=1)


def by_threshold(dev: torch.Tensor, dev_same: np.ndarray, test: torch.Tensor, same: np.ndarray):
    """Accuracy on test with the threshold that is best on dev."""
    known = (dev[::2] * dev[1::2]).sum(1).numpy()
    order = np.sort(known)
    borders = np.concatenate([[-2], (order[1:] + order[:-1]) / 2, [2]])
    accuracies = [np.mean((known > border) == dev_same) for border in borders]
    border = borders[int(np.argmax(accuracies))]
    found = (test[::2] * test[1::2]).sum(1).numpy() > border
    return float(np.mean(found == same))


def measure(
    name: str,
    how: dict[str, torch.Tensor | int],
    wsd: dict[str, dict[str, tuple[Vectors, np.ndarray]]],
    wic: dict[str, tuple[Vectors, np.ndarray]],
    isotropies: dict[str, list[Isotropy]] | None,
) -> dict[str, float]:
    """A row of the table."""
    each = []
    own = None if isotropies is None else isotropies["wsd"]
    for parts in wsd.values():
        (train, senses), (test, wanted) = parts["train"], parts["test"]
        sides = [represent(one.targets, how[name], own) for one in (train, test)]
        each.append(separate(sides[0], senses, sides[1], wanted))
    row = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
    own = None if isotropies is None else isotropies["wic"]
    (dev, dev_same), (test, same) = wic["dev"], wic["test"]
    sides = [represent(one.targets, how[name], own) for one in (dev, test)]
    return {**row, "MCL-WiC": by_threshold(sides[0], dev_same, sides[1], same)}


def per_layer(parts: list[Vectors]) -> list[Isotropy]:
    rows = torch.cat([one.background for one in parts])
    return [Isotropy.of(rows[:, i].split(1 << 14)) for i in range(rows.shape[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", default="senses")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare_process(options.threads)
    lm = firth.load(options.run)
    raw = words_of_coarsewsd(options.data / "coarsewsd-20")
    wsd = {
        word: {part: (embed(lm, targets), senses) for part, (targets, senses) in parts.items()}
        for word, parts in raw.items()
    }
    folder = options.data / "mcl-wic"
    wic = {}
    for part in ("training", "dev", "test"):
        targets, same = mclwic_part(folder, part)
        wic[part] = (embed(lm, targets), same)
    isotropies = {
        "wsd": per_layer([parts["train"][0] for parts in wsd.values()]),
        "wic": per_layer([wic["training"][0]]),
    }
    rows, weights = table(wsd, wic, isotropies)
    majority = {
        "CoarseWSD-20": float(
            np.mean(
                [np.mean(p["test"][1] == np.bincount(p["train"][1]).argmax()) for p in raw.values()]
            )
        ),
        "MCL-WiC": float(max(np.mean(wic["test"][1]), 1 - np.mean(wic["test"][1]))),
    }
    write(options, rows, majority, weights)


def table(wsd, wic, isotropies):
    """Rows with and without correction, and the learned weights."""
    train, same = wic["training"]
    depth = train.targets.shape[1] - 2
    rows: dict[str, dict[str, dict[str, float]]] = {}
    weights: dict[str, list[float]] = {}
    for label, correction in (("plain", None), ("corrected", isotropies)):
        own = None if correction is None else correction["wic"]
        how: dict[str, torch.Tensor | int] = {
            "static (layer 0)": 0,
            "its sentence (mean of layer 0)": depth + 1,
        }
        if depth:  # else a static model
            mix = learn_mix(train.targets, same, own)
            weights[label] = [round(float(value), 4) for value in mix]
            how |= {f"layer {i}": i for i in range(1, depth)}
            how |= {
                f"layer {depth}, the last": depth,
                "mean of all layers": torch.full((depth + 1,), 1 / (depth + 1)),
                "mix, learned on MCL-WiC": mix,
            }
        for name in how:
            found = measure(name, how, wsd, wic, correction)
            rows.setdefault(name, {})[label] = found
            print(name, label, {k: round(v, 3) for k, v in found.items()}, flush=True)
    return rows, weights


def write(options, rows, majority, weights) -> None:
    RESULTS.mkdir(exist_ok=True)
    record = {
        "run": Path(options.run).name,
        "majority": majority,
        "weights of the mix": weights,
        "rows": rows,
    }
    (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    columns = list(next(iter(rows.values()))["plain"])
    lines = [
        "| | " + " | ".join(f"{name} | corrected" for name in columns) + " |",
        "| --- |" + " --- |" * (2 * len(columns)),
    ]
    chance = [majority["CoarseWSD-20"], majority["CoarseWSD-20"], 0.5, majority["MCL-WiC"]]
    cells = [f"{100 * value:.1f} | " for value in chance]
    lines.append("| majority | " + " | ".join(cells) + " |")
    for name, row in rows.items():
        cells = [f"{100 * row[k][c]:.1f}" for c in columns for k in ("plain", "corrected")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (RESULTS / f"{options.name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
