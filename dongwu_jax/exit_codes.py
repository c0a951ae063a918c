"""How the training command ends, for whoever starts it again (docs/operations.md)."""

DONE = 0
FAILED = 1  # the message says why
PEER_LOST = 69  # EX_UNAVAILABLE of sysexits.h: another process is gone or has failed
SAVED = 75  # EX_TEMPFAIL: stopped by a signal or a time limit, and saved; start the command again
BAD_NUMBERS = 76  # the loss or its gradients, and computing them again does not help
HARDWARE_FAULT = 77  # devices that should agree do not
HANG = 124  # as timeout(1)
INTERRUPTED = 130  # Ctrl-C
BY_SIGNAL = 128  # and the number of the signal
