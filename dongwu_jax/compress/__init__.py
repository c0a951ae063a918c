"""Smaller models out of big ones: what each part is worth, what is kept, which shape."""
