"""Torch files read and written without torch, and without running what their pickles say."""
