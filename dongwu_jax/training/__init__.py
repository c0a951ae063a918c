"""The run itself: step, optimizer, loop, checkpoints, metrics, and what to do when things break."""
