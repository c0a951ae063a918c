"""Sizes of files as people write them."""

import re

from dongwu_jax.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(text: str, flag: str) -> int:
    """The bytes that a text such as 500MB, 5GB or 2GiB means.

    Raises:
        UserError: it is not a size, or zero; `flag` says where it stood.
    """
    match = re.fullmatch(r"(\d+)\s*(?:([KMG]I?)?B)?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise UserError(f"{flag} {text}: write a size such as 500MB, 5GB or 2GiB")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]
