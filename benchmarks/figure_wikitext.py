"""Perplexity of an AWD-LSTM on WikiText-2, valid and test, as Merity et al. 2018 measure it.

    firth pretrain awd-lstm WIKI/train.txt.zst --valid WIKI/valid.txt --documents line \
        --tokenizer.kind whitespace --vocab 33280 -o RUN --minutes 60
    python benchmarks/figure_wikitext.py RUN ../shared/data/wikitext-2

Each part is read as one stream from its first word to its last, the state carried on. A line ends
with one token of its own; empty lines, which the published files have as well, are left out (they
would add 0.6 % of easily predicted tokens). Prints a row for each part.
"""

import argparse
import math
import tempfile
from pathlib import Path

import firth
from firth.api import LanguageModel
from firth.api.pretraining import read_recipe
from firth.api.training_text import open_training_text, write_training_text
from firth.device import prepare_process
from firth.text.batches import ObjectiveBatches
from firth.training import mean_loss


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--threads", type=int, default=None)
    given = options.parse_args()
    prepare_process(given.threads)
    lm = firth.load(given.run)
    assert isinstance(lm, LanguageModel)
    recipe = read_recipe(given.run)
    recipe = recipe.with_settings({"training.batch_tokens": recipe.data.max_length})  # one stream
    objective = recipe.objective.for_validation()
    for part in ("valid", "test"):
        corpus = firth.Corpus.from_files(given.data / f"{part}.txt", documents="line")
        with tempfile.TemporaryDirectory() as folder:
            write_training_text(corpus, lm.tokenizer, Path(folder), part, None)
            text = open_training_text(Path(folder), part, recipe)
            packed = text.batches(recipe, lm.tokenizer.vocabulary, 0, training=False)
            batches = ObjectiveBatches(packed, objective)
            count = packed.steps_per_epoch
            loss = mean_loss(lm.model, objective, batches, count, recipe.training)
            tokens = sum(batches(step).num_predictions for step in range(count))
        print(f"{part}\tperplexity {math.exp(loss):.1f}\t{tokens:,} tokens", flush=True)


if __name__ == "__main__":
    main()
