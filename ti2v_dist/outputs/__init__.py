"""What a user gets: mp4s, tables, reports."""
