"""The table of round trips, file to file, that docs/conversion.md shows."""

from pathlib import Path

import pytest
from command_lines import load_script

ROUND_TRIPS = Path(__file__).parents[2] / "benchmarks" / "round_trips.py"


@pytest.mark.slow
def test_every_cell_is_full():
    assert load_script(ROUND_TRIPS).main([]) == 0
