"""The files of a tokenizer as they are read: tokenizer.json, and the settings beside it.

What a tokenizer_config.json says counts for more than the tokenizer.json.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firth.config import read_json
from firth.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

_SETTINGS = {
    "BertNormalizer": {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    },
    "ByteLevel": {"add_prefix_space": "add_prefix_space"},
}
"""Kind of a part of tokenizer.json to the settings of it, by their keys in the other file."""

_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of `transformers` that take tokenizer.json as it is."""


def canonical(tokenizer_json: str, where: object) -> str:
    """The content of a tokenizer.json in one way of writing, without padding and truncation.

    Raises:
        CheckpointError: if it is no JSON object.
    """
    try:
        description = json.loads(tokenizer_json)
        plain = {**description, "padding": None, "truncation": None}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: not a tokenizer.json: {error}") from error
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a JSON file beside a tokenizer.json, empty if there is none.

    Raises:
        CheckpointError: if it is no JSON object.
    """
    try:
        return read_json(path) if path.exists() else {}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def with_settings(tokenizer_json: str, config: dict[str, Any], *, where: object) -> str:
    """A tokenizer.json with what the file beside it says otherwise, as `transformers` reads both.

    Args:
        tokenizer_json: the content of the file; one that is no JSON comes back as it is.
        config: the content of the other.
        where: the file to name in a message.
    """
    try:
        description = json.loads(tokenizer_json)
    except ValueError:
        return tokenizer_json
    if not isinstance(description, dict) or config.get("tokenizer_class") in _PLAIN:
        return tokenizer_json
    changed = []
    for part in (*_parts(description, "normalizer"), *_parts(description, "pre_tokenizer")):
        for theirs, ours in _SETTINGS.get(part.get("type", ""), {}).items():
            if theirs in config and config[theirs] != part.get(ours):
                part[ours] = config[theirs]
                changed.append(f"{theirs} {json.dumps(config[theirs])}")
    if not changed:
        return tokenizer_json
    logger.warning("%s: tokenizer_config.json says otherwise: %s", where, ", ".join(changed))
    return json.dumps(description, ensure_ascii=False)


def _parts(description: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """A normalizer or a pre-tokenizer, or those that a sequence is made of."""
    whole = description.get(name) or {}
    yield from whole.get(f"{name}s".replace("pre_", "pre"), [whole])
