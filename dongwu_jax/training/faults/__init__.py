"""What goes wrong while a run is at work, and what becomes of it then."""
