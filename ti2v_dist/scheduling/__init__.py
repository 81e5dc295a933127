"""Who works next: pure decisions. No clock, no IO, no torch, no Ray."""
