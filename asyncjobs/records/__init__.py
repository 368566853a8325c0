"""The way to the store: reading and writing jobs."""
