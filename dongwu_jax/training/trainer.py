"""The loop: batches through the compiled step, with metrics, evaluation and checkpoints."""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.data.fingerprint import fingerprint
from dongwu_jax.data.gpt_dataset import SampleSource
from dongwu_jax.data.loader import BatchLoader
from dongwu_jax.data.teacher_cache import TeacherCache, open_run_cache
from dongwu_jax.models.parameters import Parameters, parameter_count, parameter_shardings
from dongwu_jax.parallel.layout import make_sharding, teacher_sharding
from dongwu_jax.parallel.peers import Peers
from dongwu_jax.parallel.stop_agreement import StopAgreement
from dongwu_jax.parallel.switchboard import Switchboard
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.checkpoints.base_weights import BaseWeights, describe_base
from dongwu_jax.training.checkpoints.beginning_anew import check_may_begin
from dongwu_jax.training.checkpoints.damaged import set_damaged_aside
from dongwu_jax.training.checkpoints.host_memory import make_host_memory_ready
from dongwu_jax.training.checkpoints.store import Checkpoints
from dongwu_jax.training.compilation import keep_compiled_programs
from dongwu_jax.training.deterministic_attention import ask_for_deterministic_attention
from dongwu_jax.training.distillation import TeacherModel, make_distillation_loss
from dongwu_jax.training.faults.bad_step_record import BadStepRecorder
from dongwu_jax.training.faults.bad_steps import BadSteps, is_exact
from dongwu_jax.training.faults.run_lock import lock_run
from dongwu_jax.training.faults.stragglers import Stragglers
from dongwu_jax.training.faults.watchdog import Watchdog, make_watchdog
from dongwu_jax.training.faults.weight_check import WeightCheck
from dongwu_jax.training.gate import abstract_gate
from dongwu_jax.training.gradients import Objective
from dongwu_jax.training.progress import Progress
from dongwu_jax.training.records.profile import Profile, StepRange, check_profile_steps
from dongwu_jax.training.records.run_log import environment, lost_work, open_run_log
from dongwu_jax.training.records.throughput import Throughput
from dongwu_jax.training.run_inputs import checked_tokenizer_files, open_datasets
from dongwu_jax.training.saving import Saving
from dongwu_jax.training.state import StartingPoint, TrainState, abstract_state, initial_state
from dongwu_jax.training.step import (
    Metrics,
    make_evaluation_step,
    make_objective,
    make_train_step,
)
from dongwu_jax.training.stepping import Stepping
from dongwu_jax.training.trained_weights import Frozen
from dongwu_jax.training.validation import evaluate

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
        peers: the processes of the run.
    """

    config: RunConfig
    start: StartingPoint = field(default_factory=StartingPoint)
    teacher: TeacherModel | None = None
    watchdog: Watchdog | None = None
    began: float = field(default_factory=time.time)
    agreement: StopAgreement = field(default_factory=lambda: StopAgreement(Switchboard()))
    profile: StepRange | None = None
    peers: Peers = field(default_factory=Peers)
    _base_weights: BaseWeights = field(default_factory=dict, init=False)  # beneath adapters

    def __post_init__(self) -> None:
        config, devices = self.config, jax.devices()
        check_profile_steps(self.profile, config.steps)
        self.sharding = make_sharding(config, devices)
        self.datasets = open_datasets(config)
        self.fingerprint = fingerprint(
            config.data, config.steps * config.training.global_batch_size
        )
        self.tokenizer_files = checked_tokenizer_files(config)
        self._cache = open_run_cache(config, self.fingerprint)
        self.layout = BatchLayout(config, self.sharding, self._cache.entries if self._cache else {})
        objective = self._objective(devices[0].platform)
        self._locks = lock_run(config, self.began)  # for as long as the trainer lives
        self.run_log = open_run_log(config)
        if set_damaged_aside(config.checkpoint.directory, self.run_log) is None:
            check_may_begin(config.checkpoint.directory, config.log_directory / "events.jsonl")
        # After all that may be refused: it starts threads.
        self.checkpoints = Checkpoints(
            config.checkpoint, lambda step: self.run_log.event("checkpoint", step=step)
        )
        if config.training.compilation_cache:
            keep_compiled_programs(config.checkpoint.directory.parent / "compiled")
        self._train_step = make_train_step(config, self.sharding, objective)
        if self._distils:  # evaluated is the text alone, whatever is trained
            objective = make_objective(config, self.sharding, devices[0].platform)
        self._evaluation_step = make_evaluation_step(config, objective)
        self._frozen = self._load_frozen()
        model = self.teacher.config if self.teacher else None
        self._progress = Progress(
            config,
            self.watchdog or make_watchdog(config, self.peers),
            self.run_log,
            Throughput(config, devices, model),
            Stragglers(self.peers, self.run_log, config.guards.straggler_share),
        )
        self.stopped_early = False  # by agreement
        recorder = BadStepRecorder(config, self.datasets.train)
        self._bad_steps = BadSteps(
            config.bad_steps,
            recorder if jax.process_index() == 0 else None,
            self.run_log,
            is_exact(devices[0].platform, config.training.deterministic),
        )
        abstract = abstract_state(config, self.sharding)
        self._profile = Profile(
            self.profile if jax.process_index() == 0 else None,
            config.log_directory / "profile",
            lambda step: self._progress.pausing("writing the profile", "profile", step),
        )
        self._weight_check = WeightCheck(self.sharding, abstract.parameters)
        self._saving = Saving(
            config,
            self.checkpoints,
            self.tokenizer_files,
            self.run_log,
            self.fingerprint,
            self.datasets.train,
            self._bad_steps,
            self._base_weights,
            abstract,
        )

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
            BadNumbersError, HardwareFaultError: see `BadSteps.judge`.
            UserError: something could not be written.
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
        with self.run_log.session(lambda: self._progress.last_finished, self.config.steps):
            self._progress.begin(first, last, resumed)  # drops what `_log_start` has counted
            self._profile.begin(first, last)
            loader = self._loader(self.datasets.train, first, last, self._cache)
            try:
                state = self._steps(state, loader, first, last)
            finally:
                self._profile.end()
                step = self._progress.last_finished
                with self._progress.pausing("closing the run", "closing", step):
                    loader.close()
                    self._progress.close()
                    self._saving.close()
        return state

    def _log_start(self, state: TrainState, resumed: bool) -> None:
        step = self._saving.last_saved = int(state.step)
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
        return self._saving.restore()

    def _steps(self, state: TrainState, loader: BatchLoader, first: int, last: int) -> TrainState:
        if first == last:
            return self._save_last(state, last)
        stepping = Stepping(
            self._compile(state),
            self._frozen,
            self._bad_steps,
            self._progress.step_finished,
            self._roll_back,
            self._profile,
        )
        done = first
        for step in range(first + 1, last + 1):
            if not self.agreement.may_begin(step):
                self._stop_early(done)
                break
            waiting = time.perf_counter()
            batch = self.layout.place(next(loader))
            self._progress.waited_for_data(time.perf_counter() - waiting)
            state = stepping.advance(state, step, batch)
            if self._pauses_after(step):
                state = stepping.settle(state)
                self._pause(state, step)
            done = step
        state = stepping.settle(state)
        self._profile.end()
        return self._save_last(state, done)

    def _save_last(self, state: TrainState, step: int) -> TrainState:
        with self._progress.pausing("saving the last checkpoint", "checkpoint", step):
            self._saving.save_last(state, step)
        return state

    def _stop_early(self, done: int) -> None:
        self.stopped_early = True
        self._progress.report_also(done)
        logger.info("%s: stopping after step %d", self.agreement.reason, done)
        self.run_log.event("stop", reason=self.agreement.reason, step=done)

    def _compile(self, state: TrainState) -> Callable[..., tuple[TrainState, Metrics]]:
        started = time.perf_counter()
        make_host_memory_ready(state)
        arguments = state, self.layout.abstract(), self._frozen
        gate = abstract_gate(self.sharding.replicated)
        lowered = self._train_step.lower(*arguments, gate)
        if self.config.training.deterministic:
            ask_for_deterministic_attention(lowered)
        compiled = lowered.compile()
        seconds = time.perf_counter() - started
        logger.info("compiled the training step in %.1f s", seconds)
        self.run_log.event("compiled", seconds=seconds)
        self._progress.begin_steps()
        return compiled

    def _pauses_after(self, step: int) -> bool:
        config = self.config
        intervals = (
            config.guards.weight_check_interval,
            config.evaluation.interval,
            config.checkpoint.interval,
        )
        return any(_due(step, interval) for interval in intervals)

    def _pause(self, state: TrainState, step: int) -> None:
        """What interrupts the stream of steps: checks, evaluation and saving, when they are due."""
        pausing = self._progress.pausing
        if _due(step, self.config.guards.weight_check_interval):
            with pausing(f"comparing the weights of step {step}", "weight check", step):
                self._weight_check.check(step, state.parameters, self.peers.hosts)
        if _due(step, self.config.evaluation.interval):
            with pausing(f"the evaluation after step {step}", "evaluation", step):
                self._progress.report(step, self._evaluate(state))
        if _due(step, self.config.checkpoint.interval):
            with pausing(f"saving the checkpoint of step {step}", "checkpoint", step):
                self._saving.save(state, step)

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        assert self.datasets.validation is not None
        load = functools.partial(self._loader, self.datasets.validation)
        frozen = Frozen(self._frozen.base)
        return evaluate(self.config, state, self._evaluation_step, load, self.layout, frozen)

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

    def _roll_back(self, state: TrainState, step: int) -> TrainState:
        with self._progress.pausing(f"rolling back from step {step}", "rollback", step):
            return self._saving.roll_back(state, step)


def _due(step: int, interval: int) -> bool:
    """Whether something that is done every so many steps is; 0: never."""
    return interval > 0 and step % interval == 0
