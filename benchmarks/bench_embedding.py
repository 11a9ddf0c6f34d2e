"""Vectors for texts of mixed lengths: firth against sentence-transformers and ONNX Runtime.

    python benchmarks/bench_embedding.py

A lap is a pass from strings to vectors: tokenizing, encoder, mean over the tokens. All contenders
have the same weights (random ones, or those of `--model`), and the agreement of each one's vectors
with those of sentence-transformers in float32 is shown.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from data import CACHE, cached, mixed_texts, tokenizer_folder
from report import compare, milliseconds, parser, publish, rate, timing_table
from timing import Contender, Measured, Pace, run

VOCABULARY, LONGEST = 8192, 512
BEST_BATCH = 8
"""Texts in a batch of the peers at their best: of 32, one long text makes most padding."""
REFERENCE = "sentence-transformers as installed"


def random_model(shape: tuple[int, int]) -> Path:
    """A model directory, written by firth, that transformers and sentence-transformers load.

    The matrices have a standard deviation of 0.04, as those of a trained BERT: twice that of its
    initialisation. (After a few hundred steps of training, all texts have much the same vector, and
    the agreement of vectors would say little.)
    """

    def write(path: Path) -> None:
        import torch

        from firth.api import LanguageModel
        from firth.models.bert import Bert, BertConfig
        from firth.text.tokenizers import Tokenizer

        layers, width = shape
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_layers=layers,
            num_heads=width // 64,
            intermediate_size=4 * width,
            max_length=LONGEST,
        )
        torch.manual_seed(0)
        model = Bert(config, pooler=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(2)
        LanguageModel(model, Tokenizer.load(tokenizer_folder(VOCABULARY))).save(path)

    return cached(f"encoder-{shape[0]}x{shape[1]}", write)


def prepare_texts(count: int) -> Path:
    """The texts, as a JSON list."""
    from firth.text.tokenizers import Tokenizer

    def write(path: Path) -> None:
        texts = mixed_texts(count, Tokenizer.load(tokenizer_folder(VOCABULARY)))
        path.write_text(json.dumps(texts), encoding="utf-8")

    return cached(f"mixed-texts-{count}.json", write)


def export_onnx(model: Path) -> dict[str, Path]:
    """The encoder with its mean over tokens as ONNX: float32, and int8 (dynamic)."""

    def write(path: Path) -> None:
        path.mkdir()
        _export(model, path / "float32.onnx")
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(path / "float32.onnx", path / "int8.onnx", weight_type=QuantType.QInt8)

    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]
    folder = cached(f"onnx-{weights}", write)
    return {name: folder / f"{name}.onnx" for name in ("float32", "int8")}


def _export(model: Path, path: Path) -> None:
    import warnings

    import torch
    from transformers import AutoModel

    class Sentences(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.body(input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(states.dtype)
            return (states * kept).sum(1) / kept.sum(1)

    names = ["input_ids", "attention_mask"]
    example = torch.ones(2, 8, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Sentences(),
            (example, example),
            str(path),
            input_names=names,
            output_names=["vectors"],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
            dynamo=False,
        )


def _keep(pace: Pace, texts: list[str], out: str, embed: Any) -> None:
    """Laps of `embed(texts)`; the first one's vectors are kept to be compared."""
    np.save(out, np.asarray(embed(texts), dtype=np.float32))
    pace.start()
    while True:
        embed(texts)
        pace.lap()


def firth(pace: Pace, model: str, texts: str, out: str, precision: str) -> None:
    """`firth.load(...).embed(texts)`."""
    from firth.api import load

    lm = load(model, device="cpu", precision=precision)  # type: ignore[arg-type]
    _keep(pace, json.loads(Path(texts).read_text()), out, lm.embed)  # type: ignore[union-attr]


def sentence_transformers(
    pace: Pace, model: str, texts: str, out: str, bf16: bool, batch_size: int
) -> None:
    """`SentenceTransformer(...).encode(texts)`, by length; batches of 32 are its default."""
    import torch
    from sentence_transformers import SentenceTransformer

    settings = {"dtype": torch.bfloat16} if bf16 else {}
    # A plain transformers directory gets a mean over the tokens.
    encoder = SentenceTransformer(model, device="cpu", model_kwargs=settings)
    encoder.max_seq_length = LONGEST

    def embed(some: list[str]) -> Any:
        found = encoder.encode(
            some, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True
        )
        return found.float().numpy()

    _keep(pace, json.loads(Path(texts).read_text()), out, embed)


def onnx_runtime(pace: Pace, model: str, texts: str, out: str, graph: str, threads: int) -> None:
    """An `InferenceSession` on small batches, by length."""
    import onnxruntime
    from peers import load_tokenizer

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    tokenizer = load_tokenizer(Path(model))

    def embed(some: list[str]) -> np.ndarray:
        order = sorted(range(len(some)), key=lambda i: -len(some[i]))
        vectors: list[Any] = [None] * len(some)
        for i in range(0, len(order), BEST_BATCH):
            chosen = order[i : i + BEST_BATCH]
            batch = tokenizer(
                [some[j] for j in chosen],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="np",
            )
            feed = {k: batch[k].astype(np.int64) for k in ("input_ids", "attention_mask")}
            for j, vector in zip(chosen, np.asarray(session.run(None, feed)[0]), strict=True):
                vectors[j] = vector
        return np.stack(vectors)

    _keep(pace, json.loads(Path(texts).read_text()), out, embed)


def contenders(model: Path, texts: Path, threads: int) -> list[Contender]:
    """firth first: the others are held against it."""
    graphs = export_onnx(model)
    ours, st, ort = "firth", "sentence_transformers", "onnx_runtime"
    rows: list[tuple[str, str, dict[str, Any], bool]] = [
        ("firth, bfloat16", ours, {"precision": "bfloat16"}, False),
        ("firth, float32", ours, {"precision": "float32"}, False),
        (REFERENCE, st, {"bf16": False, "batch_size": 32}, False),
        ("sentence-transformers, bf16", st, {"bf16": True, "batch_size": BEST_BATCH}, True),
        ("ONNX Runtime, float32", ort, {"graph": str(graphs["float32"]), "threads": threads}, True),
        ("ONNX Runtime, int8", ort, {"graph": str(graphs["int8"]), "threads": threads}, True),
    ]
    return [
        Contender(
            name=name,
            work=work,
            options={
                "model": str(model),
                "texts": str(texts),
                "out": str(CACHE / f"vectors-{i}.npy"),
                **options,
            },
            tuned_allocator=tuned,
            allocator_note="glibc, mallopt by firth" if work == ours else "",
        )
        for i, (name, work, options, tuned) in enumerate(rows)
    ]


def agreement(one: Measured, reference: Measured, *, centred: bool = False) -> str:
    """Lowest cosine of a text's vector with that of the reference.

    `centred` takes off the mean of the reference's vectors first, which is a sharper test: vectors
    of sentences point much the same way.
    """
    if one is reference:
        return "reference"
    a, b = (np.load(m.contender.options["out"]).astype(np.float64) for m in (one, reference))
    if centred:
        a, b = a - b.mean(0), b - b.mean(0)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return f"{cosine.min():.7f}"


def arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--texts", type=int, default=384, help="texts a pass")
    options.add_argument(
        "--model", type=Path, help="a run of firth, or a directory of transformers"
    )
    given = options.parse_args()
    if given.quick:
        given.rounds, given.texts, given.patience = 1, 16, 0
    return given


def main() -> None:
    from firth.text.tokenizers import Tokenizer

    given = arguments()
    shape = (1, 64) if given.quick else (6, 384)
    model = given.model or random_model(shape)
    texts = prepare_texts(given.texts)
    tokenizer = Tokenizer.load(model)
    lengths = [len(ids) for ids in tokenizer.encode_ids(json.loads(texts.read_text()))]
    rows = contenders(model, texts, given.threads)
    timing = compare(
        rows,
        given,
        laps=1,
        warm_up=1,
    )
    reference = next(one for one in timing.measured if one.contender.name == REFERENCE)
    extra = [
        ("ms a pass", milliseconds),
        ("texts a second", rate(given.texts)),
        ("tokens a second", rate(sum(lengths))),
        ("lowest cosine", lambda one: agreement(one, reference)),
        ("lowest, centred", lambda one: agreement(one, reference, centred=True)),
    ]
    note = (
        f"{given.texts} texts of {np.mean(lengths):.1f} tokens in the mean (median "
        f"{np.median(lengths):.0f}, 95 % at most {np.percentile(lengths, 95):.0f}, longest "
        f"{max(lengths)}); vocabulary {tokenizer.vocabulary.size:,}."
    )
    title = f"{given.model.name if given.model else f'{shape[0]}x{shape[1]}'}, mixed lengths"
    publish("embedding", given, [timing_table(timing, title=title, note=note, extra=extra)])


if __name__ == "__main__":
    run(
        main,
        {
            "firth": firth,
            "sentence_transformers": sentence_transformers,
            "onnx_runtime": onnx_runtime,
        },
    )
