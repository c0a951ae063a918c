"""What a run says of itself: metrics, events, traces."""
