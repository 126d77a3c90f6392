"""Changes of files: of bytes, of text and of the values of a JSON record."""

from __future__ import annotations

import json
import random
from typing import Any

_CHARACTERS = "{}[]:,- \n'\"&*!|>%@`#?0123456789abcxyz.~"
_VALUES: list[Any] = [None, True, -1, 0, 10**400, 1e308, "", "x", [], [[]], {}, ["a", 1], [1e308] * 3]


def bytes_of(content: bytes, generator: random.Random) -> bytes:
    """Returns a content in which one to three pieces are other bytes, gone, doubled, zero or new; or the first part."""
    mutant = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        if not mutant:
            break
        at = generator.randrange(len(mutant))
        end = min(len(mutant), at + generator.choice((1, 4, 64)))
        match generator.randrange(7):
            case 0:
                mutant[at] ^= 1 << generator.randrange(8)
            case 1:
                mutant[at:end] = generator.randbytes(end - at)
            case 2:
                del mutant[at:end]
            case 3:
                mutant[at:at] = mutant[at:end]
            case 4:
                mutant[at:end] = bytes(end - at)
            case 5:
                mutant[at:at] = generator.randbytes(8)
            case 6:
                del mutant[at:]
    return bytes(mutant)


def text_of(content: str, generator: random.Random) -> str:
    """Returns a text in which one to four characters are others, gone or doubled."""
    characters = list(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(characters))
        match generator.randrange(3):
            case 0:
                characters[at] = generator.choice(_CHARACTERS)
            case 1:
                del characters[at]
            case 2:
                characters.insert(at, characters[at])
    return "".join(characters)


def record_of(content: str, generator: random.Random) -> str:
    """Returns a JSON record in which a value at any place is another one, or gone."""
    record = json.loads(content)
    at: Any = record
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = generator.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and generator.random() < 0.7:
            at = at[key]
            continue
        if generator.random() < 0.2:
            del at[key]
        else:
            at[key] = generator.choice(_VALUES)
        return json.dumps(record)


def flipped(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """Returns a content with one flipped bit, and which."""
    mutant, at, bit = bytearray(content), generator.randrange(len(content)), generator.randrange(8)
    mutant[at] ^= 1 << bit
    return bytes(mutant), f"bit {bit} of byte {at}"
