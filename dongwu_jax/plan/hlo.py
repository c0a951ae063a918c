"""The collectives of a compiled program, read from its HLO text.

The compiled program, not the intention, is what counts: kind, bytes, how often a step runs it and
over which mesh axes. Reads what XLA prints for CPU and GPU, synchronous and `-start` forms alike.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jax.sharding import Mesh

from dongwu_jax.plan.hlo_program import Computation, Instruction, array_bytes, parse_program
from dongwu_jax.plan.replica_groups import axes_within, read_groups, read_pairs

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective instruction, for its operands of one dtype."""

    kind: str  # one of `KINDS`
    dtype: str  # as HLO writes it: "bf16", "f32"
    axes: tuple[str, ...]  # mesh axes along which the members of a group differ
    group_size: int  # devices that take part in one group; 2 for a permute
    operand_bytes: int  # what one device puts in, a call
    calls: int  # runs in one execution of the program
    calls_known: bool  # False: it is inside a loop of unknown length, counted once
    op_name: str  # where it comes from, "jit(step)/...", or ""

    @property
    def result_bytes(self) -> int:
        """What one device gets out of a call."""
        if self.kind == "all-gather":
            return self.operand_bytes * self.group_size
        if self.kind == "reduce-scatter":
            return self.operand_bytes // self.group_size
        return self.operand_bytes

    @property
    def wire_bytes(self) -> int:
        """What one device sends in a call, by the ring algorithms: (n-1)/n of the full size."""
        if self.kind == "collective-permute":
            return self.operand_bytes
        full = max(self.operand_bytes, self.result_bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * full * (self.group_size - 1) // self.group_size


@dataclass(frozen=True)
class CollectiveTotal:
    """All collectives of one kind, mesh axes and dtype; bytes are of one device in one step."""

    kind: str
    axes: tuple[str, ...]
    dtype: str
    calls: int
    operand_bytes: int
    result_bytes: int
    wire_bytes: int


def read_collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """Every collective of a compiled program, in the order of the text.

    A call that combines operands of several dtypes is listed once for each dtype; one without
    communication (groups of one device) is left out. A branch of a conditional counts as taken.

    Args:
        hlo_text: `compiled.as_text()`.
        mesh: the mesh the program was compiled for; HLO numbers its devices in their order there.
    """
    program = parse_program(hlo_text)
    found: list[Collective] = []
    for computation in program.computations.values():
        runs, known = program.runs(computation.name)
        for instruction in computation.instructions if runs else ():
            kind = _kind(instruction.opcode)
            if kind is not None:
                found += _read(kind, instruction, computation, mesh, runs, known)
    return found


def summarize_collectives(collectives: Iterable[Collective]) -> list[CollectiveTotal]:
    """Totals of a step by kind, axes and dtype, most bytes on the wire first."""
    groups: dict[tuple[str, tuple[str, ...], str], list[Collective]] = {}
    for collective in collectives:
        key = collective.kind, collective.axes, collective.dtype
        groups.setdefault(key, []).append(collective)
    totals = [
        CollectiveTotal(
            *key,
            calls=sum(member.calls for member in members),
            operand_bytes=sum(member.calls * member.operand_bytes for member in members),
            result_bytes=sum(member.calls * member.result_bytes for member in members),
            wire_bytes=sum(member.calls * member.wire_bytes for member in members),
        )
        for key, members in groups.items()
    ]
    return sorted(totals, key=lambda total: -total.wire_bytes)


def _kind(opcode: str) -> str | None:
    """The collective an opcode starts; `-done` only waits for one that is counted already."""
    kind = opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def _read(
    kind: str,
    instruction: Instruction,
    computation: Computation,
    mesh: Mesh,
    runs: int,
    known: bool,
) -> Iterator[Collective]:
    """What one instruction moves, one entry a dtype."""
    if kind == "collective-permute":
        groups = read_pairs(instruction.attributes)
    else:
        groups = read_groups(instruction.attributes, math.prod(mesh.shape.values()))
    axes = axes_within(groups, mesh)
    if not axes:
        return
    bytes_of: dict[str, int] = {}
    for operand in instruction.operands:
        for dtype, count in array_bytes(computation.types[operand]):
            bytes_of[dtype] = bytes_of.get(dtype, 0) + count
    for dtype, count in bytes_of.items():
        yield Collective(kind, dtype, axes, len(groups[0]), count, runs, known, instruction.op_name)
