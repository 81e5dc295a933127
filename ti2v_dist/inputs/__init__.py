"""What a user gives: the rows of a manifest, and their images."""
