"""How fast and how full: tokens per second, TFLOP/s, MFU, memory, time lost waiting for data."""

import resource
import sys
import time

import jax

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.models.flops import flops_per_token, peak_tflops


class Stopwatch:
    """Times steps, leaving out pauses such as evaluation and saving."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._excluded = 0.0
        self.data_wait_seconds = 0.0

    def exclude(self, seconds: float) -> None:
        """Do not count this time towards the current interval."""
        self._excluded += seconds

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap without pauses, and seconds of them spent on data."""
        now = time.perf_counter()
        elapsed = max(now - self._last - self._excluded, 1e-9)
        waited = self.data_wait_seconds
        self._last, self._excluded, self.data_wait_seconds = now, 0.0, 0.0
        return elapsed, waited


class Throughput:
    """Turns steps and seconds into the figures of the log."""

    def __init__(
        self, config: RunConfig, devices: list[jax.Device], teacher: ModelConfig | None = None
    ):
        length, convention = config.data.sequence_length, config.logging.flops_convention
        self._tokens = config.training.global_batch_size * length
        adapters = config.lora.rank is not None
        of_a_token = flops_per_token(config.model, length, convention, frozen=adapters)
        if teacher is not None:  # a forward pass, of a training's three
            of_a_token += flops_per_token(teacher, length, convention) / 3
        self._flops = self._tokens * of_a_token
        self._devices = devices
        self._peak = config.logging.peak_tflops or peak_tflops(devices[0].device_kind)

    def figures(self, steps: int, seconds: float, data_wait_seconds: float) -> dict[str, float]:
        """tokens_per_second (all devices), tflops_per_device, mfu when the peak is known, ..."""
        tflops = steps * self._flops / seconds / len(self._devices) / 1e12
        figures = {
            "step_seconds": seconds / steps,
            "tokens_per_second": steps * self._tokens / seconds,
            "tflops_per_device": tflops,
            "data_wait_share": data_wait_seconds / seconds,
            "memory_gib": memory_in_use() / 2**30,
        }
        if self._peak is not None:
            figures["mfu"] = tflops / self._peak
        return figures


def memory_in_use() -> int:
    """Peak bytes: of the fullest local device, or of this process where devices do not tell."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in statistics if "peak_bytes_in_use" in entry]
    if peaks:
        return max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
