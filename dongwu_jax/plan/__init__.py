"""What a run will need and how fast it will be, told before a GPU is rented."""
