"""What lies on disk of a run, and how it comes back."""
