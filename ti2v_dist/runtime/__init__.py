"""The actors of a run: coordinator, workers, and all that they hold. The only home of Ray."""
