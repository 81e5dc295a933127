"""What a user does with a run, one file a thing."""
