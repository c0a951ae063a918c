"""The sections of a run about what may go wrong in it: bad numbers, hangs, faulty devices."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dongwu_jax.config.section import Section


class BadStepsConfig(Section):
    """Steps whose loss or gradient norm is not finite, or far above what is usual."""

    action: Literal["skip", "rollback", "stop"] = Field(
        "skip",
        description="what follows a bad step, which is never applied. skip: go on with the next "
        "batch; rollback: the same from the newest checkpoint's weights, the batches between are "
        "not read again; stop: end the run with exit code 76",
    )
    loss_factor: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="a loss above this many times the median of recent steps is bad, too; null: "
        "only one that is not finite",
    )
    gradient_norm_factor: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="the same for the gradient norm before clipping; null: only one that is not "
        "finite",
    )
    window: PositiveInt = Field(
        100,
        description="number of applied steps that the median is taken of; before there are so many,"
        " no finite number is bad",
    )
    most_in_a_row: PositiveInt = Field(
        5,
        description="so many bad steps in a row end the run with exit code 76, whatever the action",
    )
    recompute: bool = Field(
        True,
        description="compute a bad step once more from the same state: a result that differs is a "
        "faulty device's, and ends the run with exit code 77",
    )


class GuardsConfig(Section):
    """What ends a run that no longer gets anywhere."""

    hang_timeout_factor: NonNegativeFloat = Field(
        10.0,
        description="a step that takes more than this many times the median step is a hang: the "
        "stacks of all threads are written and the process exits with code 124; 0: "
        "never",
    )
    hang_timeout_min_seconds: PositiveFloat = Field(
        300.0, le=864_000.0, description="no step is a hang before it has taken so many seconds"
    )
    hang_timeout_pause_seconds: PositiveFloat = Field(
        3600.0,
        le=864_000.0,  # ten days; the clocks that wait for it take no number at will
        description="limit, in seconds, of all that is no ordinary step: loading, compiling with "
        "the first step, an evaluation, saving a checkpoint",
    )
    straggler_share: NonNegativeFloat = Field(
        0.2,
        description="a process that delays steps by more than this share of a step, by its own "
        "work between waits for its devices, is named in the log; 0: none is",
    )
    weight_check_interval: NonNegativeInt = Field(
        0,
        description="steps between comparisons of the data-parallel replicas' weights, bit for "
        "bit; where they differ, the run ends with exit code 77. With mesh.data of 1 there are no "
        "replicas. 0: never",
    )
