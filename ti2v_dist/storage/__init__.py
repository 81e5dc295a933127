"""Bytes: objects that are created once, files at a path or an address. The only home of fsspec."""
