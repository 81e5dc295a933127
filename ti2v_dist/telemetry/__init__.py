"""What a run says of itself: logs, metrics, its events."""
