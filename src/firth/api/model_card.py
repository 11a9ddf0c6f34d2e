"""README.md of a run: what a model is, what it was trained on, how well it predicts."""

from pathlib import Path
from typing import Any

from firth import __version__
from firth.api.training_text import TrainingText
from firth.atomic import write_text
from firth.config import read_json
from firth.models import AWDLSTMConfig, ElmoConfig, Seq2SeqConfig
from firth.recipes import Recipe
from firth.training.tracking import read_metrics


def is_recurrent(recipe: Recipe) -> bool:
    """Whether the model is a recurrent one, without attention heads."""
    return isinstance(recipe.model, ElmoConfig | AWDLSTMConfig | Seq2SeqConfig)


def _by_language(row: dict[str, Any]) -> str:
    prefix = "valid_perplexity_"
    found = [
        f"{key.removeprefix(prefix)} {value:.2f}"
        for key, value in row.items()
        if key.startswith(prefix)
    ]
    return f"; by language: {', '.join(found)}" if found else ""


def keep_card(run: Path, text: str) -> None:
    """Writes README.md, unless one is there: the user may have put the licence into it since."""
    if not (run / "README.md").exists():
        write_text(run / "README.md", text)


def model_card(run: Path, recipe: Recipe, text: dict[str, TrainingText]) -> str:
    """README.md of a run: what it is, what it was trained on, how well it predicts."""
    rows = [row for row in read_metrics(run) if "valid_loss" in row]
    last = rows[-1] if rows else None
    result = (
        f"Validation perplexity {recipe.objective.predicts}: {last['valid_perplexity']:.2f} after "
        f"step {last['step']:,} ({last['tokens']:,} tokens, {last['seconds'] / 60:.1f} minutes)"
        f"{_by_language(last)}."
        if last
        else "Not validated."
    )
    config, tokenizer = recipe.model, read_json(run / "tokenizer.json")
    heads = "" if is_recurrent(recipe) else f", {config.num_heads} heads"  # pyright: ignore
    return f"""# {run.name}

A {recipe.name} language model, trained with firth {__version__}.

- Shape: {config.num_layers} layers, hidden size {config.hidden_size}{heads},
  vocabulary {config.vocab_size:,} ({tokenizer["model"]["type"]}).
- Text: {text["train"].describe()}.
- Held out: {text["valid"].num_tokens:,} tokens.
- {result}

Load it with `firth.load("{run}")`. Everything it depends on is in `recipe.json`; the course of
training is in `metrics.jsonl`. The licence of the weights follows from the text they were trained
on: state it here.
"""
