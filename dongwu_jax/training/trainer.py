"""The loop: batches through the compiled step, with metrics, evaluation and checkpoints."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.data.datasets import Datasets, build_datasets
from dongwu_jax.data.fingerprint import fingerprint
from dongwu_jax.data.gpt_dataset import SampleSource, samples_drawn
from dongwu_jax.data.loader import BatchLoader
from dongwu_jax.data.teacher_cache import TeacherCache, open_run_cache
from dongwu_jax.data.tokenizers import load_fitting_tokenizer, tokenizer_files
from dongwu_jax.errors import UserError
from dongwu_jax.models.parameters import Parameters, parameter_count, parameter_shardings
from dongwu_jax.parallel.layout import make_sharding, teacher_sharding
from dongwu_jax.parallel.stop_agreement import StopAgreement
from dongwu_jax.parallel.switchboard import Switchboard
from dongwu_jax.training.base_weights import check_same_base, describe_base
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.checkpoints import Checkpoints
from dongwu_jax.training.compilation import keep_compiled_programs
from dongwu_jax.training.distillation import TeacherModel, make_distillation_loss
from dongwu_jax.training.gradients import Objective
from dongwu_jax.training.host_memory import make_host_memory_ready
from dongwu_jax.training.profile import StepRange, profiled
from dongwu_jax.training.reports import Report, open_reports
from dongwu_jax.training.resume import check_same_data, check_same_run
from dongwu_jax.training.run_log import environment, lost_work, open_run_log
from dongwu_jax.training.state import StartingPoint, TrainState, abstract_state, initial_state
from dongwu_jax.training.step import (
    Metrics,
    make_evaluation_step,
    make_objective,
    make_train_step,
)
from dongwu_jax.training.throughput import Stopwatch, Throughput
from dongwu_jax.training.trained_weights import Frozen
from dongwu_jax.training.watchdog import Watchdog, make_watchdog

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """One run: everything it needs is built once, then `run` goes through the steps.

    Args:
        config: the resolved run.
        start: weights, step and moments to start from. Not used when resuming.
        teacher: the model of `distillation.teacher`, if set.
        watchdog: told of the steps; whoever enters it also covers the building of the trainer.
            None: nothing ends a run that hangs.
        began: when the work for this run began, in seconds since the epoch.
        agreement: asked before each step whether it is still to be done.
        profile: steps that are traced into the folder `profile` beside the metrics.
    """

    config: RunConfig
    start: StartingPoint = field(default_factory=StartingPoint)
    teacher: TeacherModel | None = None
    watchdog: Watchdog | None = None
    began: float = field(default_factory=time.time)
    agreement: StopAgreement = field(default_factory=lambda: StopAgreement(Switchboard()))
    profile: StepRange | None = None
    _pending: tuple[int, Metrics] | None = field(default=None, init=False)
    _base_weights: dict[str, Any] = field(default_factory=dict, init=False)  # beneath adapters

    def __post_init__(self) -> None:
        config, devices = self.config, jax.devices()
        self.sharding = make_sharding(config, devices)
        self.datasets = _open_datasets(config)
        self.fingerprint = fingerprint(
            config.data, config.steps * config.training.global_batch_size
        )
        self.tokenizer_files = _checked_tokenizer_files(config)
        self._cache = open_run_cache(config, self.fingerprint)
        self.layout = BatchLayout(config, self.sharding, self._cache.entries if self._cache else {})
        objective = self._objective(devices[0].platform)
        # After all that may be refused: it starts threads.
        self.checkpoints = Checkpoints(config.checkpoint)
        if config.training.compilation_cache:
            keep_compiled_programs(config.checkpoint.directory.parent / "compiled")
        self._train_step = make_train_step(config, self.sharding, objective)
        if self._distils:  # evaluated is the text alone, whatever is trained
            objective = make_objective(config, self.sharding, devices[0].platform)
        self._evaluation_step = make_evaluation_step(config, objective)
        self._frozen = self._load_frozen()
        model = self.teacher.config if self.teacher else None
        self._throughput = Throughput(config, devices, model)
        self._stopwatch = Stopwatch()
        self._watchdog = self.watchdog or make_watchdog(config, jax.process_index())
        self.run_log = open_run_log(config)
        self.stopped_early = False  # by agreement
        self._reports: list[Report] = []
        self._last_reported = self._last_saved = 0
        self._always_reported: tuple[int, ...] = ()

    @property
    def _distils(self) -> bool:
        return self.teacher is not None or self._cache is not None

    def _objective(self, platform: str) -> Objective:
        """What this run minimises."""
        if not self._distils:
            return make_objective(self.config, self.sharding, platform)
        model = self.teacher.config if self.teacher else None
        loss = make_distillation_loss(self.config, self.sharding, platform, model)
        return make_objective(self.config, self.sharding, platform, loss)

    def _load_frozen(self) -> Frozen:
        """The weights that the steps need beside the state."""
        base: Parameters = {}
        teacher: Parameters = {}
        dtype = self.config.precision.compute_dtype
        if self.config.lora.rank:
            assert self.start.load_base is not None, "adapters are of some model"
            model = self.config.model
            places = parameter_shardings(model, self.sharding)
            base = self.start.load_base(model, places, dtype)
            self._base_weights = describe_base(base, dtype)
        if self.teacher is not None:
            model = self.teacher.config
            places = parameter_shardings(model, teacher_sharding(self.config, self.sharding, model))
            teacher = self.teacher.load(model, places, dtype)
        return Frozen(base, teacher)

    def run(self, stop_after: int | None = None) -> TrainState:
        """Train to the end, for `stop_after` steps more, or until all agree to stop; and save.

        Returns:
            The last state.

        Raises:
            UserError: the loss became infinite or not a number, or something could not be written.
        """
        resumed = self.checkpoints.latest_step is not None
        state = self.resume_or_start()
        first = int(state.step)
        last = self.config.steps if stop_after is None else first + stop_after
        last = min(last, self.config.steps)
        logger.info(
            "training from step %d to step %d of %d; TFLOP/s by convention %s",
            first,
            last,
            self.config.steps,
            self.config.logging.flops_convention,
        )
        self._log_start(state, resumed)
        if jax.process_index() == 0:
            self._reports = open_reports(self.config, first, resumed)
        loader = self._loader(self.datasets.train, first, last, self._cache)
        with self.run_log.session(lambda: self._last_reported, self.config.steps):
            try:
                state = self._steps(state, loader, first, last)
            finally:
                with self._pausing("closing the run", "closing", self._last_reported):
                    loader.close()
                    for report in self._reports:
                        report.close()
                    self.checkpoints.close()
        return state

    def _log_start(self, state: TrainState, resumed: bool) -> None:
        step = self._last_reported = self._last_saved = int(state.step)
        self.run_log.event(
            "start",
            began=self.began,
            step=step,
            resumed=resumed,
            steps=self.config.steps,
            config=self.config.model_dump(mode="json"),
            parameters=parameter_count(state.parameters),
            blend=self.fingerprint["blend"],
            **environment(),
            **lost_work(self.config.log_directory / "metrics.jsonl", step),
        )

    def resume_or_start(self) -> TrainState:
        """The newest checkpoint's state, or that of the starting point."""
        if self.checkpoints.latest_step is None:
            return initial_state(self.config, self.sharding, self.start)
        check_same_run(self.checkpoints.directory, self.config)
        state, data_state = self.checkpoints.restore(abstract_state(self.config, self.sharding))
        check_same_data(self.checkpoints.directory, data_state, self.fingerprint, self.config)
        if self._base_weights:
            origin = self.config.training.initial_weights
            check_same_base(data_state["base_weights"], self._base_weights, origin)
        logger.info("resumed at step %d from %s", int(state.step), self.checkpoints.directory)
        return state

    def _steps(self, state: TrainState, loader: BatchLoader, first: int, last: int) -> TrainState:
        self._always_reported = (first + 1, last)
        if first < last:
            train_step = self._compile(state)
        done = first
        for step in range(first + 1, last + 1):
            if not self.agreement.may_begin(step):
                self._stop_early(done)
                break
            waiting = time.perf_counter()
            batch = self.layout.place(next(loader))
            self._stopwatch.data_wait_seconds += time.perf_counter() - waiting
            state, metrics = train_step(state, batch, self._frozen)
            # Report the step before: its result is there while the device works on this one.
            self._report_pending()
            self._pending = (step, metrics)
            self._pause(state, step)
            done = step
        self._report_pending()
        with self._pausing("saving the last checkpoint", "checkpoint", done):
            self._save(state, done)
        return state

    def _stop_early(self, done: int) -> None:
        self.stopped_early = True
        self._always_reported += (done,)
        logger.info("%s: stopping after step %d", self.agreement.reason, done)
        self.run_log.event("stop", reason=self.agreement.reason, step=done)

    def _compile(self, state: TrainState) -> Callable[..., tuple[TrainState, Metrics]]:
        started = time.perf_counter()
        make_host_memory_ready(state)
        batch = self.layout.abstract()
        compiled = self._train_step.lower(state, batch, self._frozen).compile()
        seconds = time.perf_counter() - started
        logger.info("compiled the training step in %.1f s", seconds)
        self.run_log.event("compiled", seconds=seconds)
        self._stopwatch.lap()
        if self.profile is None or jax.process_index() > 0:
            return compiled
        pause = self._pausing("writing the profile", "profile", self.profile.last)
        folder = self.config.log_directory / "profile"
        return profiled(compiled, int(state.step) + 1, self.profile, folder, pause)

    def _pause(self, state: TrainState, step: int) -> None:
        """What interrupts the stream of steps: evaluation and saving, when they are due."""
        config = self.config
        due_evaluation = config.evaluation.interval and step % config.evaluation.interval == 0
        due_checkpoint = step % config.checkpoint.interval == 0
        if not (due_evaluation or due_checkpoint):
            return
        self._report_pending()
        if due_evaluation:
            with self._pausing(f"the evaluation after step {step}", "evaluation", step):
                self._write(step, self.evaluate(state))
        if due_checkpoint:
            with self._pausing(f"saving the checkpoint of step {step}", "checkpoint", step):
                self._save(state, step)

    @contextmanager
    def _pausing(self, what: str, kind: str, step: int) -> Iterator[None]:
        """Tell the watchdog, the run's log and the stopwatch of something that is no step."""
        started = time.perf_counter()
        with self._watchdog.pause(what), self.run_log.pause(kind, step):
            yield
        self._stopwatch.exclude(time.perf_counter() - started)

    def _save(self, state: TrainState, step: int) -> None:
        batch, first = self.config.training.global_batch_size, self._last_saved
        data_state = {"fingerprint": self.fingerprint, "consumed_samples": step * batch}
        if self._base_weights:
            data_state["base_weights"] = self._base_weights
        self.checkpoints.save(state, self.config, data_state, self.tokenizer_files)
        if step > first:
            samples = samples_drawn(self.datasets.train, first * batch, step * batch)
            self.run_log.event("data", first_step=first, last_step=step, samples=samples)
            self._last_saved = step

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Token-weighted loss and perplexity over `evaluation.batches` validation batches.

        `order: megatron` goes on through the validation samples as Megatron does; otherwise each
        evaluation sees the same ones.
        """
        batches, interval = self.config.evaluation.batches, self.config.evaluation.interval
        first = 0
        if self.config.data.order == "megatron":
            first = (int(state.step) // interval - 1) * batches
        assert self.datasets.validation is not None
        loader = self._loader(self.datasets.validation, first, first + batches)
        frozen = Frozen(self._frozen.base)
        totals = [
            self._evaluation_step(state, self.layout.place(batch), frozen) for batch in loader
        ]
        loader.close()
        loss_sum = sum(float(total["loss_sum"]) for total in totals)
        loss = loss_sum / max(sum(float(total["weight"]) for total in totals), 1.0)
        return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}

    def _loader(
        self, dataset: SampleSource, first: int, last: int, cache: TeacherCache | None = None
    ) -> BatchLoader:
        data = self.config.data
        return BatchLoader(
            dataset,
            global_batch_size=self.config.training.global_batch_size,
            accumulation_steps=self.layout.accumulation_steps,
            rows=self.layout.local_rows(),
            eod_token=data.eod_token,
            eod_mask_loss=data.eod_mask_loss,
            start_step=first,
            stop_step=last,
            prefetch=data.prefetch,
            cache=cache,
        )

    def _report_pending(self) -> None:
        """Wait for the last dispatched step and report it.

        Raises:
            UserError: its loss or gradient is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()}
        self._watchdog.step_finished(step)
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            raise UserError(
                f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; "
                f"stopped without saving it. The newest checkpoint is step "
                f"{self.checkpoints.latest_step} in {self.checkpoints.directory}. Lower "
                "optimizer.learning_rate, lengthen schedule.warmup, or look at the data"
            )
        if step % self.config.logging.interval == 0 or step in self._always_reported:
            seconds, waited = self._stopwatch.lap()
            steps, self._last_reported = step - self._last_reported, step
            self._write(step, values | self._throughput.figures(steps, seconds, waited))

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        for report in self._reports:
            report.write(step, metrics)


def _checked_tokenizer_files(config: RunConfig) -> Sequence[Path]:
    """What to keep in every checkpoint: refused now, not when a checkpoint is to be used."""
    tokenizer = config.data.tokenizer
    if tokenizer is None:
        return ()
    end_token = load_fitting_tokenizer(tokenizer, config.model.vocab_size).eos_id
    if config.data.eod_mask_loss and config.data.eod_token != end_token:
        raise UserError(
            f"data.eod_token={config.data.eod_token}, but {tokenizer} ends texts with {end_token}; "
            "data.eod_mask_loss needs the right one"
        )
    return tokenizer_files(tokenizer)


def _open_datasets(config: RunConfig) -> Datasets:
    batch, interval = config.training.global_batch_size, config.evaluation.interval
    evaluations = config.steps // interval + 1 if interval else 0
    datasets = build_datasets(
        config.data,
        train_samples=config.steps * batch,
        validation_samples=evaluations * config.evaluation.batches * batch,
        vocab_size=config.model.vocab_size,
    )
    if datasets.validation is not None:
        _check_validation_samples(config, len(datasets.validation))
    return datasets


def _check_validation_samples(config: RunConfig, samples: int) -> None:
    """Fail before the first step, not at the evaluation that runs out of samples."""
    per_evaluation = config.evaluation.batches * config.training.global_batch_size
    in_megatron_order = config.data.order == "megatron"
    evaluations = config.steps // config.evaluation.interval if in_megatron_order else 1
    if evaluations * per_evaluation > samples:
        raise UserError(
            f"evaluation.batches={config.evaluation.batches}: the validation data has {samples} "
            f"samples, but {evaluations} evaluations need {evaluations * per_evaluation}; lower "
            "it, raise evaluation.interval, or give the datasets weights so that they are repeated"
        )
