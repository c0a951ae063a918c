"""Going on with a Megatron run: its weights, position and, where they can be had, Adam moments."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.megatron.distributed import TorchDistSource
from dongwu_jax.interop.megatron.moments import OptimizerMoments
from dongwu_jax.interop.megatron.rank_moments import rank_moments
from dongwu_jax.interop.megatron.recipe import recipe_differences
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.megatron.training_state import MegatronRun, updates_done
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.targets import ReadTensor
from dongwu_jax.interop.torch_files.reader import read_torch_file
from dongwu_jax.models.parameters import Parameters
from dongwu_jax.training.checkpoints.folders import is_checkpoint
from dongwu_jax.training.state import AdamMoments, LoadParameters, StartingPoint

logger = logging.getLogger(__name__)


class Continuation:
    """A Megatron checkpoint whose run goes on here.

    Attributes:
        source: its weights; the config of it may be corrected before `starting_point`.
        run: where it stands and how it was trained.
    """

    def __init__(self, path: Path):
        """Open the checkpoint; no values are read.

        Raises:
            UserError: it is none of Megatron's, or damaged.
        """
        self.source = _open(path)
        if isinstance(self.source, MegatronSource):
            common = read_torch_file(self.source.weights.first.path)
        else:
            common = self.source.common
        scheduler = common.get("opt_param_scheduler")
        self.run = MegatronRun(
            path=path,
            iteration=self.source.iteration,
            consumed_samples=self.source.consumed_samples,
            arguments=vars(common["args"]),
            scheduler=scheduler if isinstance(scheduler, dict) else {},
            updates=updates_done(common),
        )

    def starting_point(self, config: RunConfig) -> StartingPoint:
        """Where a run with this configuration starts; logs what is carried and what differs.

        Raises:
            UserError: such a run cannot stand where the checkpoint does.
        """
        step = self.run.check_position(config)
        differences = recipe_differences(self.run, config)
        if differences:
            logger.warning("%s: the recipe differs:\n  %s", self.run.path, "\n  ".join(differences))
        carried = (
            f"going on from {self.run.path}, {self.source.description}: weights, iteration {step}, "
            f"{self.run.consumed_samples} samples and learning rate carried"
        )
        moments = self._moments()
        if isinstance(moments, str):
            masters = "" if self.source.dtype == "float32" else " and float32 master weights"
            logger.warning(
                "%s; Adam moments%s not: %s. The moments start at zero", carried, masters, moments
            )
            return StartingPoint(_loader(self.source.read), step)
        updates = self.run.updates or step
        logger.info("%s, and Adam moments of %d updates", carried, updates)
        values = _CarriedValues(self.source, moments, updates)
        return StartingPoint(values.parameters, step, values.moments)

    def _moments(self) -> OptimizerMoments | str:
        """Adam's state, or the reason why it cannot be had."""
        if isinstance(self.source, MegatronSource):
            return rank_moments(self.source)
        return self.source.moments()


@dataclass(frozen=True)
class _CarriedValues:
    """Reads weights and moments, each when it is asked for."""

    source: MegatronSource | TorchDistSource
    optimizer: OptimizerMoments
    updates: int

    def parameters(self, config: ModelConfig, shardings: Parameters) -> Parameters:
        """Float32 masters where there are any: more exact than the model's weights."""
        return _loader(self._weight)(config, shardings)

    def moments(self, config: ModelConfig, shardings: Parameters) -> AdamMoments:
        """Both moments, laid out like the parameters."""
        first, second = _loader(self.optimizer.exp_avg), _loader(self.optimizer.exp_avg_sq)
        return AdamMoments(self.updates, first(config, shardings), second(config, shardings))

    def _weight(self, name: str) -> np.ndarray:
        master = self.optimizer.master(name)
        return self.source.read(name) if master is None else master


def _loader(read: ReadTensor) -> LoadParameters:
    return functools.partial(load_parameters, read)


def _open(path: Path) -> MegatronSource | TorchDistSource:
    if is_checkpoint(path):
        raise UserError(
            f"training.continue_from={path}: is a checkpoint of ours, which goes on without this "
            "setting: set checkpoint.directory to its folder, or start a new run from its weights "
            "with training.initial_weights"
        )
    source = open_source(path)
    if isinstance(source, MegatronSource | TorchDistSource):
        return source
    source.close()
    raise UserError(
        f"training.continue_from={path}: is not a Megatron checkpoint, so there is no run to go on "
        "with; to start a new run from these weights use training.initial_weights"
    )
