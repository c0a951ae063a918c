"""Which devices talk to each other in a collective, and along which mesh axes.

HLO numbers devices by their position in the mesh (row major). Groups come in three spellings:
lists `{{0,1},{2,3}}`, iota `[2,2]<=[4]` with an optional `T(1,0)`, and, from JAX 0.11 on, axes of
a mesh, `mesh['data'=2,'tensor'=2] {'tensor'}`.
"""

import re
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\((.*?)\))?[ ,]*\{([^}]*)\}")
_MESH_ORDER = re.compile(r"\[([\d,]+)\]T\(([\d,]+)\)")
_AXIS_SIZE = re.compile(r"'?([^',=]+)'?=(\d+)")
_AXIS_PART = re.compile(r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?")  # name, or name:(before)size
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def read_groups(attributes: str, device_count: int) -> list[list[int]]:
    """The groups of devices that exchange data with each other.

    Raises:
        ValueError: the groups are spelled in none of the known ways.
    """
    lists = _LISTS.search(attributes)
    if lists is not None:
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", lists.group(1))]
        return groups or [list(range(device_count))]  # none named: all together
    iota = _IOTA.search(attributes)
    if iota is not None:
        shape, source, order = (_numbers(text or "") for text in iota.groups())
        return _iota(source, order).reshape(shape).tolist()
    mesh = _MESH.search(attributes)
    if mesh is not None:
        return _mesh_groups(*mesh.groups())
    raise ValueError(f"replica groups of an unknown form: {attributes[:200]}")


def read_pairs(attributes: str) -> list[list[int]]:
    """[source, target] of every message of a permute.

    Raises:
        ValueError: there are none.
    """
    match = _PAIRS.search(attributes)
    if match is None:
        raise ValueError(f"a permute without source_target_pairs: {attributes[:200]}")
    return [_numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", match.group(1))]


def axes_within(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which members of one group differ.

    Raises:
        ValueError: the groups differ in size.
    """
    if not groups:
        return ()
    if len({len(group) for group in groups}) > 1:
        raise ValueError(f"replica groups of different sizes lie along no mesh axes: {groups}")
    coordinates = np.unravel_index(np.asarray(groups), tuple(mesh.shape.values()))
    return tuple(
        axis
        for axis, along in zip(mesh.axis_names, coordinates, strict=True)
        if (along != along[:, :1]).any()
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _iota(shape: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """0, 1, 2... in `shape`, its dimensions reordered when `order` is not empty."""
    devices = np.arange(np.prod(shape)).reshape(shape)
    return devices.transpose(order) if order else devices


def _mesh_groups(sizes_text: str, devices_text: str | None, axes_text: str) -> list[list[int]]:
    """Devices that differ only along the named axes, or parts of axes, of a mesh."""
    sizes = {name: int(size) for name, size in _AXIS_SIZE.findall(sizes_text)}
    devices = _mesh_devices(devices_text, tuple(sizes.values()))
    # Split every axis that is used in part into (before, part, after), then bring parts last.
    split: list[int] = []
    together: list[int] = []
    parts = {name: (before, size) for name, before, size in _AXIS_PART.findall(axes_text)}
    for name, size in sizes.items():
        if name not in parts:
            split.append(size)
        elif not parts[name][1]:
            together.append(len(split))
            split.append(size)
        else:
            before, part = (int(number) for number in parts[name])
            together.append(len(split) + 1)
            split += [before, part, size // before // part]
    apart = [dimension for dimension in range(len(split)) if dimension not in together]
    members = int(np.prod([split[dimension] for dimension in together]))
    return devices.reshape(split).transpose(apart + together).reshape(-1, members).tolist()


def _mesh_devices(text: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """The devices of a mesh in its order: in sequence, reordered, or listed."""
    if text is None:
        return np.arange(np.prod(shape)).reshape(shape)
    reordered = _MESH_ORDER.search(text)
    if reordered is None:
        return np.asarray(_numbers(text)).reshape(shape)
    source, order = (_numbers(part) for part in reordered.groups())
    return _iota(source, order).reshape(shape)
