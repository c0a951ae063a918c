"""Where a Megatron checkpoint lies: its tracker file, iteration folders and rank files."""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dongwu_jax.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
_LARGEST_TRACKER = 1024  # bytes; a number has a few
_MOST_LISTED = 16
_WEIGHT_FILES = ("model_optim_rng.pt", "model_rng.pt")  # the second: before 2021, with optim.pt
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_ITERATION_FOLDER = re.compile(r"iter_(\d{7,})")

Rank = tuple[int, int]
"""Tensor parallel rank and pipeline stage."""


@dataclass(frozen=True)
class IterationFolder:
    """One saved state of a model."""

    path: Path
    iteration: int | None  # as the folder's name says; None: `release`, or another name

    @property
    def is_release(self) -> bool:
        """Whether Megatron loads it as fresh weights, at iteration 0."""
        return self.path.name == "release"


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether `path` looks like the folder of a Megatron run, or of one of its iterations."""
    return path.is_dir() and ((path / TRACKER).is_file() or _holds_weights(path))


def find_iteration_folder(path: Path) -> IterationFolder:
    """The folder that holds weights: what the tracker file in `path` names, or `path` itself.

    Raises:
        UserError: the tracker says nothing sensible, or the folder that it names is missing, or
            there is neither a tracker nor a weight.
    """
    if (path / TRACKER).is_file():
        return _tracked(path)
    if _holds_weights(path):
        return _iteration_folder(path)
    saved = sorted(folder.name for folder in path.glob("*") if _is_iteration_name(folder.name))
    if saved:
        raise UserError(
            f"{path}: has no {TRACKER}, which would name one of {', '.join(saved)}; "
            f"give the folder itself, e.g. {path / saved[-1]}"
        )
    raise UserError(f"{path}: holds no Megatron checkpoint: neither {TRACKER} nor mp_rank_00")


def has_rank_files(folder: Path) -> bool:
    """Whether an iteration folder has the torch format, a file for each rank."""
    return any(folder.glob("mp_rank_*"))


def rank_files(folder: Path) -> dict[Rank, Path]:
    """The weight file of every tensor parallel rank and pipeline stage.

    Raises:
        UserError: there are none, a rank is missing, or the ranks are those of experts.
    """
    ranks: dict[Rank, Path] = {}
    for found in sorted(folder.glob("mp_rank_*")):
        other = ranks.setdefault(_rank(found), found)
        if other != found:
            raise UserError(f"{folder}: {other.name} and {found.name} are the same rank; keep one")
    if not ranks:
        raise UserError(f"{folder}: holds no mp_rank_* folder")
    tensor = 1 + max(t for t, _ in ranks)
    stages = 1 + max(p for _, p in ranks)
    with_stage = [_has_stage(found) for found in ranks.values()]
    if len(set(with_stage)) > 1:
        raise UserError(
            f"{folder}: mixes mp_rank_NN and mp_rank_NN_NNN folders, of two different layouts; "
            "keep only those of one"
        )
    num_missing = tensor * stages - len(ranks)
    if num_missing:
        absent = ((t, p) for p in range(stages) for t in range(tensor) if (t, p) not in ranks)
        names = [rank_folder_name(t, p, with_stage[0]) for t, p in islice(absent, _MOST_LISTED)]
        more = f" and {num_missing - len(names)} more" if num_missing > len(names) else ""
        raise UserError(
            f"{folder}: {', '.join(names)}{more} missing; {tensor} tensor parallel ranks x "
            f"{stages} pipeline stages are needed"
        )
    return {rank: _weight_file(found) for rank, found in ranks.items()}


def rank_folder_name(tensor_rank: int, stage: int, with_stage: bool) -> str:
    """Megatron's name for a rank's folder; the stage is part of it when there are several."""
    return f"mp_rank_{tensor_rank:02d}" + (f"_{stage:03d}" if with_stage else "")


def iteration_folder_name(iteration: int | None) -> str:
    """Megatron's name for an iteration's folder; None: `release`, weights without a history."""
    return "release" if iteration is None else f"iter_{iteration:07d}"


def write_tracker(root: Path, iteration: int | None) -> None:
    """Name the iteration that Megatron is to load; written last, when all else is complete."""
    content = "release" if iteration is None else str(iteration)
    (root / TRACKER).write_text(content, encoding="ascii")


def _tracked(root: Path) -> IterationFolder:
    tracker = root / TRACKER
    try:
        with tracker.open("rb") as file:
            data = file.read(_LARGEST_TRACKER + 1)
        content = data.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{tracker}: cannot be read as text: {error}") from None
    if len(data) > _LARGEST_TRACKER:
        raise UserError(
            f"{tracker}: has more than {_LARGEST_TRACKER} bytes; it must be an iteration such as "
            "500, or 'release'"
        )
    if content != "release" and not re.fullmatch(r"[0-9]{1,18}", content):
        raise UserError(
            f"{tracker}: says {content[:40]!r}; it must be an iteration such as 500, or 'release'"
        )
    iteration = None if content == "release" else int(content)
    folder = root / iteration_folder_name(iteration)
    if not folder.is_dir():
        raise UserError(
            f"{tracker}: names {content}, but there is no folder {folder.name}; "
            "give the folder of another iteration, or restore this one"
        )
    return IterationFolder(folder, iteration)


def _iteration_folder(path: Path) -> IterationFolder:
    match = _ITERATION_FOLDER.fullmatch(path.resolve().name)
    return IterationFolder(path.resolve(), int(match[1]) if match else None)


def _is_iteration_name(name: str) -> bool:
    return name == "release" or _ITERATION_FOLDER.fullmatch(name) is not None


def _holds_weights(path: Path) -> bool:
    """Torch format, or torch_dist."""
    return has_rank_files(path) or any(path.glob("*.distcp")) or (path / ".metadata").is_file()


def _rank(found: Path) -> Rank:
    match = _RANK_FOLDER.fullmatch(found.name)
    if match is None:
        raise UserError(f"{found}: is not named like a rank, mp_rank_TT or mp_rank_TT_PPP")
    if match[3] is not None:
        raise UserError(
            f"{found}: the third number is that of an expert or data parallel rank; mixtures of "
            "experts and distributed checkpoints of that kind are unsupported"
        )
    return int(match[1]), int(match[2] or 0)


def _has_stage(found: Path) -> bool:
    match = _RANK_FOLDER.fullmatch(found.name)
    return match is not None and match[2] is not None


def _weight_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: {_WEIGHT_FILES[0]} is missing")
