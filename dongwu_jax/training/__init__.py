"""The run itself: step, optimizer, loop; in rooms of their own its records, faults, checkpoints."""
