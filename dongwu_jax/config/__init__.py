"""What a run is: sections of settings, YAML and command-line loading, help."""

from dongwu_jax.config.loading import dump_config, load_config, overlay, parse_config
from dongwu_jax.config.model import ModelConfig
from dongwu_jax.config.run import RunConfig

__all__ = ["ModelConfig", "RunConfig", "dump_config", "load_config", "overlay", "parse_config"]
