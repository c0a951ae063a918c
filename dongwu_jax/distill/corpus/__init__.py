"""A corpus out of synthetic text: what is worth learning from, once, and no evaluation question."""
