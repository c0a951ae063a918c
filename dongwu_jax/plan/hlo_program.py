"""The structure of HLO text: computations, instructions, and how often each computation runs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"\b(?:condition|body|calls|to_apply|true_computation|false_computation|"
    r"branch_computations|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_DIRECTION = re.compile(r"\bdirection=(\w+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    arguments: str  # what stands in the parentheses: operands, or the value of a constant
    attributes: str  # everything after them

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results this one takes."""
        return _OPERAND.findall(self.arguments)

    @property
    def op_name(self) -> str:
        """The program's own name of this operation, or ""."""
        match = _OP_NAME.search(self.attributes)
        return match.group(1) if match else ""

    def called(self) -> list[str]:
        """Names of the computations this instruction runs."""
        names = []
        for several, one in _CALLED.findall(self.attributes):
            names += [name.strip().removeprefix("%") for name in several.split(",") if name.strip()]
            names += [one] if one else []
        return names


@dataclass
class Computation:
    """A function of the program."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)  # of each instruction, by its name


@dataclass
class Program:
    """All computations by name, and which one is run first."""

    computations: dict[str, Computation]
    entry: str

    def __post_init__(self) -> None:
        self._runs: dict[str, tuple[int, bool]] = {}
        self._count(self.entry, 1, True)

    def runs(self, computation: str) -> tuple[int, bool]:
        """Times a computation runs, and whether all loops around it have a known length."""
        return self._runs.get(computation, (0, True))

    def _count(self, name: str, times: int, known: bool) -> None:
        """Add `times` runs of a computation and of everything it calls."""
        before, before_known = self.runs(name)
        self._runs[name] = before + times, before_known and known
        for instruction in self.computations[name].instructions:
            called = instruction.called()
            if not called:
                continue
            trips = self._trip_count(instruction) if instruction.opcode == "while" else 1
            for inner in called:
                if inner in self.computations:
                    self._count(inner, times * (trips or 1), known and trips is not None)

    def _trip_count(self, loop: Instruction) -> int | None:
        """Rounds of a while loop, or None when the text does not tell."""
        stated = _TRIP_COUNT.search(loop.attributes)
        if stated:
            return int(stated.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        if condition is None or condition.group(1) not in self.computations:
            return None
        return _bound(self.computations[condition.group(1)])


def parse_program(text: str) -> Program:
    """Read HLO text.

    Raises:
        ValueError: it holds no ENTRY computation, so it is not a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            opening = _COMPUTATION.match(line)
            if opening:
                current = Computation(opening.group("name"))
                computations[current.name] = current
                entry = current.name if opening.group("entry") else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _parse_instruction(line)
            if instruction is not None:
                current.instructions.append(instruction)
                current.types[instruction.name] = instruction.type
    if entry is None:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return Program(computations, entry)


def array_bytes(type_text: str) -> Iterator[tuple[str, int]]:
    """(dtype, bytes) of every array in a type, which may be a tuple."""
    for dtype, bits, dimensions in _ARRAY.findall(type_text):
        elements = 1
        for dimension in dimensions.replace("<=", "").split(","):
            elements *= int(dimension) if dimension else 1
        yield dtype, -(-elements * (int(bits) if bits else 8) // 8)


def _parse_instruction(line: str) -> Instruction | None:
    """`%name = type opcode(operands), attributes`; None for anything else."""
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    rest = match.group("rest")
    type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opening = rest.find("(", type_end)
    if opening < 0:
        return None
    closing = _closing(rest, opening)
    return Instruction(
        match.group("name"),
        rest[:type_end],
        rest[type_end:opening].strip(),
        rest[opening + 1 : closing],
        rest[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)  # the line was cut short


def _bound(condition: Computation) -> int | None:
    """n of a loop condition `i < n` that counts from 0, which is how scans are compiled.

    None for every other condition: what it compares, or how, is not known.
    """
    constants = [
        int(instruction.arguments)
        for instruction in condition.instructions
        if instruction.opcode == "constant" and instruction.arguments.isdigit()
    ]
    directions = [
        match.group(1)
        for instruction in condition.instructions
        if (match := _DIRECTION.search(instruction.attributes))
    ]
    return constants[0] if len(constants) == 1 and directions == ["LT"] else None
