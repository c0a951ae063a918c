"""The job: what was made stays, what is missing is made, whoever asks to stop is obeyed."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dongwu_jax.distill.synthesis.cutting import TextCutter
from dongwu_jax.distill.synthesis.engines import run_engines, visible_devices
from dongwu_jax.distill.synthesis.generators import EngineMeans, Means
from dongwu_jax.distill.synthesis.manifest import describe, locked, note_run, open_folder
from dongwu_jax.distill.synthesis.parts import Part, PartFolder, plan_parts
from dongwu_jax.distill.synthesis.progress import SynthesisProgress
from dongwu_jax.distill.synthesis.recipe import Recipe
from dongwu_jax.distill.synthesis.stopping import Stopped, stop_on_signals
from dongwu_jax.distill.synthesis.worker import Work
from dongwu_jax.errors import UserError
from dongwu_jax.progress_bars import clock


@dataclass(frozen=True)
class Synthesis:
    """A job.

    Attributes:
        recipe: what decides the samples.
        means: what generates them; the samples do not depend on it but for the model.
        tokenizer: folder or file of the generator's tokenizer.
        inputs: files of documents.
        output: folder of the samples.
        data_parallel: engines on this host.
        rank, world: this process does every part whose number is `rank` modulo `world`.
    """

    recipe: Recipe
    means: Means
    tokenizer: Path
    inputs: tuple[Path, ...]
    output: Path
    data_parallel: int = 1
    rank: int = 0
    world: int = 1


def run_synthesis(job: Synthesis) -> int:
    """Make the samples that are missing; the exit code of the command.

    Raises:
        UserError: the folder is another job's, or in use; the generator fails; the input cannot
            be read.
    """
    tokenizer = _check(job)
    with locked(job.output, job.rank):
        described = describe(job.recipe, job.means.model, tokenizer, job.inputs)
        open_folder(job.output, described)
        folder = PartFolder(job.output)
        recipe = job.recipe
        parts = folder.planned(job.inputs, recipe.documents_per_part, recipe.limit)
        mine = parts[job.rank :: job.world]
        folder.remove_leftovers([part.number for part in mine])
        missing = [part for part in mine if not folder.samples(part.number).exists()]
        if len(missing) < len(mine):
            _say(f"{len(mine) - len(missing):,} of {len(mine):,} parts are there already")
        if not missing:
            _say(f"{job.output}: nothing is missing")
            return 0
        return _make(job, folder, missing)


def dry_run(job: Synthesis, samples: int) -> int:
    """Make some samples, write nothing, and say how long all of them would take.

    Raises:
        UserError: as `run_synthesis`.
    """
    _check(job)
    recipe = job.recipe
    documents = sum(part.documents for part in plan_parts(job.inputs, 1 << 20, recipe.limit))
    total = documents * recipe.rounds
    wanted = min(documents, -(-samples // recipe.rounds))
    shared = -(-wanted // job.data_parallel)
    parts = plan_parts(job.inputs, shared, wanted)
    progress = SynthesisProgress(wanted * recipe.rounds)
    try:
        with stop_on_signals():
            _run(job, None, parts, progress)
    except Stopped as stopped:
        return stopped.exit_code
    finally:
        progress.close()
    counts = progress.counts
    tokens = counts.completion_tokens / max(1, counts.requests) * total
    print(f"{counts.in_words()} in {clock(progress.seconds)}: {progress.rates()}")
    print(
        f"all {total:,} prompts ({documents:,} documents x {recipe.rounds}): about "
        f"{clock(progress.remaining_seconds(total))} here, {tokens / 1e9:.4g} B tokens. A long run "
        "is faster: its batch is full until the end"
    )
    return 0


def _make(job: Synthesis, folder: PartFolder, missing: Sequence[Part]) -> int:
    documents = sum(part.documents for part in missing)
    progress = SynthesisProgress(documents * job.recipe.rounds)
    place = {"rank": job.rank, "world": job.world, "data_parallel": job.data_parallel}
    note_run(job.output, "started", means=asdict(job.means), parts=len(missing), **place)
    outcome, exit_code = "failed", 1
    try:
        with stop_on_signals():
            _run(job, job.output, missing, progress)
        outcome, exit_code = "complete", 0
    except Stopped as stopped:
        outcome, exit_code = f"stopped by {stopped}", stopped.exit_code
    finally:
        progress.close()
        left = sum(not folder.samples(part.number).exists() for part in missing)
        note_run(job.output, outcome, parts=len(missing) - left, **progress.summary())
    said = f"{progress.counts.in_words()} in {clock(progress.seconds)}: {progress.rates()}"
    if exit_code:
        _say(
            f"{outcome} after {progress.counts.in_words()}; {len(missing) - left:,} of "
            f"{len(missing):,} parts are complete. The same command goes on"
        )
        return exit_code
    print(f"{said}; wrote {len(missing):,} parts to {job.output}")
    if not progress.counts.samples:
        _say(f"warning: no samples; {folder.rejected(missing[0].number)} says why")
    return 0


def _run(
    job: Synthesis, output: Path | None, parts: Sequence[Part], progress: SynthesisProgress
) -> None:
    tensor_parallel = job.means.tensor_parallel if isinstance(job.means, EngineMeans) else 1
    devices = visible_devices(min(job.data_parallel, len(parts)), tensor_parallel)
    work = Work(job.recipe, job.means, job.tokenizer, job.inputs, output)
    run_engines(work, devices, parts, progress)


def _check(job: Synthesis) -> Path:
    """Find mistakes before the model is loaded; the file of the tokenizer."""
    if job.rank >= job.world:
        raise UserError(f"--rank {job.rank}: must be less than --world {job.world}")
    if isinstance(job.means, EngineMeans) and not Path(job.means.model).is_dir():
        raise UserError(
            f"--model {job.means.model}: is no folder; download it first, e.g. "
            "hf download NAME --local-dir FOLDER"
        )
    return TextCutter(job.tokenizer).file


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
