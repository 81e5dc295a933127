"""The command `ti2v`."""
