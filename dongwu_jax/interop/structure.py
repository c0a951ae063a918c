"""Printing the nested structure of a checkpoint: keys, shapes."""

from collections.abc import Iterable


def print_structure(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Print each key once, indented below the keys that hold it, and the shapes of tensors.

    Args:
        tensors: name, nested keys joined by `/`, and shape.
    """
    open_keys: list[str] = []
    for name, shape in tensors:
        *parents, leaf = name.split("/")
        shared = 0
        while shared < min(len(parents), len(open_keys)) and parents[shared] == open_keys[shared]:
            shared += 1
        for depth in range(shared, len(parents)):
            print(f"{'  ' * depth}{parents[depth]}")
        print(f"{'  ' * len(parents)}{leaf}: {list(shape)}")
        open_keys = parents
