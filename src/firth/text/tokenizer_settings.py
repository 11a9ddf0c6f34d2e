"""Settings of a tokenizer_config.json that count for more than the tokenizer.json beside it."""

import json
import logging
from collections.abc import Iterator
from typing import Any

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
