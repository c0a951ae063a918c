"""Whether all processes of a run were given the same settings and packages."""

import json

import jax
from jax._src import distributed  # JAX has no public way to its key-value store

import dongwu_jax
from dongwu_jax.config import RunConfig
from dongwu_jax.config.dotted_names import by_dotted_name
from dongwu_jax.errors import UserError

_FOLDER = "dongwu_jax/settings/"
_MOST_SHOWN = 10


def check_same_settings(config: RunConfig, timeout_seconds: float) -> None:
    """Compare this process's settings with those of process 0, and learn of all that differ.

    A collective operation: every process calls it once. One process alone has nothing to compare.

    Raises:
        UserError: on every process, naming the processes and the settings that differ.
    """
    client, rank = distributed.global_state.client, jax.process_index()
    if client is None:
        return
    settings = described_settings(config)
    if rank == 0:
        client.key_value_set(_FOLDER + "first", json.dumps(settings))
    milliseconds = int(timeout_seconds * 1000)
    try:
        first = json.loads(client.blocking_key_value_get(_FOLDER + "first", milliseconds))
        differing = [
            f"{name}: {settings.get(name, 'absent')} on process {rank}, "
            f"{first.get(name, 'absent')} on process 0"
            for name in [*first, *(name for name in settings if name not in first)]
            if settings.get(name) != first.get(name)
        ]
        if differing:
            shown = differing[:_MOST_SHOWN] + ["..."] * (len(differing) > _MOST_SHOWN)
            client.key_value_set(f"{_FOLDER}differing/{rank:09}", "\n  ".join(shown))
        client.wait_at_barrier("dongwu_jax_settings", milliseconds)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"the processes did not all come to compare their settings within {timeout_seconds:g} "
            f"s: {str(error).partition('. This usually')[0][:300]}"
        ) from None
    found = [text for _, text in sorted(client.key_value_dir_get(_FOLDER + "differing/"))]
    if found:
        raise UserError(
            "the processes of this run were not given the same settings:\n  "
            + "\n  ".join(found[:_MOST_SHOWN])
            + "\nGive all processes the same configuration and packages"
        )


def described_settings(config: RunConfig) -> dict[str, str]:
    """Every setting of a run by dotted name, and the versions of what runs it, as texts."""
    settings = by_dotted_name(config.model_dump(mode="json"))
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}
    return texts | {
        "version of jax": jax.__version__,
        "version of dongwu_jax": dongwu_jax.__version__,
    }
