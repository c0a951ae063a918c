"""Generated tokens per second: tools/synthesize.py, and vLLM's own `LLM.generate`.

Example:
    python benchmarks/synthesize.py --model /models/teacher --input corpus.jsonl --prompts 2000

Both load the model anew in a process of their own and get the same prompts and sampling; loading
is not counted. Ours is the whole job: reading, cutting, generating, writing parts. The case
`seeded` gives `LLM.generate` the seed of each sample as we do, `unseeded` none: what it costs that
samples can be made again. Both begin with an empty batch and end with one, so more prompts give a
steadier figure. Runs take turns; the median of their ratios counts.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.data.jsonl import expand_inputs
from dongwu_jax.distill.synthesis.cutting import TextCutter
from dongwu_jax.distill.synthesis.generators import EngineMeans
from dongwu_jax.distill.synthesis.job import Synthesis, run_synthesis
from dongwu_jax.distill.synthesis.parts import documents_of, plan_parts, source_names
from dongwu_jax.distill.synthesis.prompts import PromptMaker, Request
from dongwu_jax.distill.synthesis.recipe import Recipe, Sampling
from dongwu_jax.errors import UserError

Speed = tuple[int, float]  # generated tokens and seconds


def main() -> None:
    """Measure and print one line of JSON for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder in Hugging Face's format")
    parser.add_argument("--input", nargs="+", required=True, help="JSON lines with a key `text`")
    parser.add_argument(
        "--prompts", type=positive_int, default=2000, help="to continue (default 2000)"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=512, help="of each (default 512)"
    )
    parser.add_argument(
        "--records-per-part", type=positive_int, default=500, help="of our tool (default 500)"
    )
    parser.add_argument("--engine-options", type=json.loads, default={}, help="of LLM, as JSON")
    parser.add_argument(
        "--runs", type=positive_int, default=3, help="of each; the median counts (default 3)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = Synthesis(
            recipe=Recipe(
                text_key="text",
                template="continue",
                language="auto",
                prefix_tokens=(64, 256),
                min_document_tokens=0,
                rounds=1,
                seed=0,
                limit=options.prompts,
                documents_per_part=options.records_per_part,
                sampling=Sampling(options.max_new_tokens, 0.9, 0.95, 1.0),
            ),
            means=EngineMeans(options.model, 1, options.engine_options),
            tokenizer=Path(options.model),
            inputs=tuple(expand_inputs(options.input)),
            output=Path(folder),
        )
        _measure(job, options.runs)


def _measure(job: Synthesis, runs: int) -> None:
    requests = _requests(job)
    ours: list[Speed] = []
    theirs: dict[str, list[Speed]] = {"seeded": [], "unseeded": []}
    for _ in range(runs):
        for case, speeds in theirs.items():
            speeds.append(_generate_alone(job, requests, case == "seeded"))
        ours.append(_run_job(job))
    for case, speeds in theirs.items():
        ratios = [_rate(our) / _rate(their) for our, their in zip(ours, speeds, strict=True)]
        result = {
            "case": case,
            "prompts": len(requests),
            "runs": runs,
            "ours_tokens": ours[0][0],
            "theirs_tokens": speeds[0][0],
            "ours_tokens_per_second": round(statistics.median(map(_rate, ours)), 1),
            "theirs_tokens_per_second": round(statistics.median(map(_rate, speeds)), 1),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ratio": round(statistics.median(ratios), 3),
        }
        print(json.dumps(result), flush=True)


def _requests(job: Synthesis) -> list[Request]:
    maker = PromptMaker(job.recipe, TextCutter(job.tokenizer), source_names(job.inputs))
    parts = plan_parts(job.inputs, job.recipe.documents_per_part, job.recipe.limit)
    lines = (line for part in parts for line in documents_of(part, job.inputs))
    made = (each for line in lines for each in maker.requests(*line))
    return [each for each in made if isinstance(each, Request)]


def _run_job(job: Synthesis) -> Speed:
    with tempfile.TemporaryDirectory(dir=job.output) as folder:
        output = Path(folder) / "out"
        with contextlib.redirect_stdout(sys.stderr):
            run_synthesis(Synthesis(**vars(job) | {"output": output}))
        ended = json.loads((output / "runs.jsonl").read_text().splitlines()[-1])
    return ended["completion_tokens"], ended["seconds"]


def _generate_alone(job: Synthesis, requests: list[Request], seeded: bool) -> Speed:
    """The speed of `LLM.generate` in a process of its own, which gives back all memory."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_raw_vllm, args=(job, requests, seeded, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise UserError("LLM.generate failed; its messages above say why") from None
    finally:
        process.join()


def _raw_vllm(job: Synthesis, requests: list[Request], seeded: bool, pipe: Connection) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams

    assert isinstance(job.means, EngineMeans)
    sampling = job.recipe.sampling
    engine: Any = LLM(job.means.model, **job.means.options)
    wanted = [
        SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=request.seed if seeded else None,
        )
        for request in requests
    ]
    started = time.monotonic()
    outputs = engine.generate([request.prefix for request in requests], wanted, use_tqdm=False)
    seconds = time.monotonic() - started
    pipe.send((sum(len(output.outputs[0].token_ids) for output in outputs), seconds))
    engine.llm_engine.engine_core.shutdown()


def _rate(speed: Speed) -> float:
    return speed[0] / speed[1]


if __name__ == "__main__":
    run_command_line(main)
