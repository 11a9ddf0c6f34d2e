"""Which token opens a sequence, which closes it, which is the mask: by name and by role."""

import json
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer as Backend

from firth.errors import CheckpointError
from firth.protocols import ABSENT, Vocabulary
from firth.text.tokenizer_training import SENTINEL

CONFIG_FILE = "tokenizer_config.json"

ROLES = {
    "pad": ("pad_token",),
    "unknown": ("unk_token",),
    "first": ("cls_token", "bos_token"),
    "last": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
"""The keys of a tokenizer_config.json that may name each special token of a `Vocabulary`."""
WELL_KNOWN = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "first": ("[CLS]", "<s>", "<cls>", "<|endoftext|>", "<|begin_of_text|>", "<pad>"),
    "last": ("[SEP]", "</s>", "<sep>", "<|endoftext|>", "<|end_of_text|>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Names looked for where no file says; T5's decoder is opened by the padding token."""
_MOST_SENTINELS = 10_000
NEEDED = ("first", "last")
"""Roles that every model needs; the vocabularies of decoders often have no others."""


def find_vocabulary(backend: Backend, config: dict[str, Any], where: object) -> Vocabulary:
    """The special tokens of a tokenizer by role, and its size.

    Args:
        backend: the tokenizer.
        config: what its tokenizer_config.json holds.
        where: the place to name in an error.

    Raises:
        CheckpointError: if a special token that models need cannot be found.
    """
    ids: dict[str, int] = {}
    for role, keys in ROLES.items():
        names = [*(_content(config.get(key)) for key in keys), *WELL_KNOWN[role]]
        found = [backend.token_to_id(name) for name in names if name]
        known = [index for index in found if index is not None]
        ids.update({role: known[0]} if known else {})
    if missing := [role for role in NEEDED if role not in ids]:
        names = "; ".join(f"{role}: {' or '.join(WELL_KNOWN[role])}" for role in missing)
        key, name = ROLES[missing[0]][0], WELL_KNOWN[missing[0]][0]
        raise CheckpointError(
            f"{where}: no special token found for {', '.join(missing)} (usual names: {names}); "
            f'name it in {CONFIG_FILE}, for instance "{key}": "{name}", or add it to the tokenizer'
        )
    added = backend.get_added_tokens_decoder()
    sentinels = _sentinels(backend)
    ids = {role: ids.get(role, ABSENT) for role in ROLES}
    special = {index for index, token in added.items() if token.special}
    special |= {*ids.values(), *sentinels} - {ABSENT}
    size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
    return Vocabulary(size=size, special=tuple(sorted(special)), sentinels=sentinels, **ids)


def with_opening(tokenizer_json: str, first: str, other: str, index: int) -> str:
    """A tokenizer.json that opens texts with another token.

    Args:
        tokenizer_json: the content of the file.
        first: the token that opens texts there.
        other: that which is to.
        index: its id.
    """
    description = json.loads(tokenizer_json)
    processor = description.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        if first in part.get("special_tokens", {}):
            part["special_tokens"][first] = {"id": first, "ids": [index], "tokens": [other]}
        if "cls" in part:
            part["cls"] = [other, index]
    return json.dumps(description, ensure_ascii=False)


def _sentinels(backend: Backend) -> tuple[int, ...]:
    """The ids of T5's sentinels, in their order."""
    found = map(backend.token_to_id, map(SENTINEL.format, range(_MOST_SENTINELS)))
    return tuple(takewhile(lambda index: index is not None, found))  # type: ignore[arg-type]


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
