"""Largest absolute difference from `transformers`, by family and direction, in float32.

    python benchmarks/parity.py

Tiny random models (2 to 5 layers of 24, every bias and norm perturbed) on sequences of 1 to 30
tokens: padded with a mask, or one at a time, for them, and end to end for us. "read" loads a
directory of theirs here; "written" loads a directory of ours there. No network, a few seconds.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from firth.interop.huggingface import load_model, save_model
from tests import test_decoders as decoders
from tests import test_encoder_decoders as encoder_decoders
from tests.reference import FAMILIES, VOCABULARY, distance, measure, transformers

GENERATORS = (
    (decoders, transformers.AutoModelForCausalLM, ""),
    (encoder_decoders, transformers.AutoModelForSeq2SeqLM, "t5 "),
)


@torch.no_grad()
def generator_errors(shapes: Any, auto: Any, config: Any) -> Iterator[tuple[str, float]]:
    """Errors of the scores of a decoder, or of an encoder-decoder, by direction."""
    ours, batch = shapes.random_model(config), shapes.random_batch()
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "ours", Path(folder) / "theirs"
        save_model(here, ours, vocabulary=VOCABULARY, firth={})
        theirs = auto.from_pretrained(here).eval()
        reference = shapes.their_logits(theirs, batch)
        theirs.save_pretrained(there)
        read = load_model(there).model
        yield "read", distance(read.logits(read(batch).last), reference)
        yield "written", distance(ours.logits(ours(batch).last), reference)


def main() -> None:
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, float32, CPU\n")
    print(f"| {'family':33} | what          | direction | max error |")
    print(f"| {'-' * 33} | ------------- | --------- | --------- |")
    for family in FAMILIES:
        for (what, direction), error in measure(family).items():
            print(f"| {family:33} | {what:13} | {direction:9} | {error:9.1e} |")
    for shapes, auto, prefix in GENERATORS:
        for name, config in shapes.SHAPES.items():
            for direction, error in generator_errors(shapes, auto, config):
                print(f"| {prefix + name:33} | {'scores':13} | {direction:9} | {error:9.1e} |")


if __name__ == "__main__":
    main()
