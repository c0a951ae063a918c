"""Shared by all tests: eight virtual CPU devices, and where reference artifacts lie."""

import os
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Many tests run the same small program in several processes: compile it once a session.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax_cache_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helper modules such as `runs`

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference artifacts beside the repository; skips the test without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the reference artifacts in ../shared/data")
    return SHARED_DATA
