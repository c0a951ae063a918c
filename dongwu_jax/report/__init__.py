"""One HTML page of a run, from what the run left in its folder."""
