"""Samples and documents for tests of the corpus."""

import random


def chinese(seed: int, characters: int) -> str:
    """Sentences of ten characters, the same for the same seed."""
    draw = random.Random(seed)
    text = [chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(characters)]
    text[9::10] = "。" * len(text[9::10])
    return "".join(text)
