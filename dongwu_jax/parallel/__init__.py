"""Which device holds what, how devices and processes exchange it, and what ends them together."""
