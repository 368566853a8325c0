"""Takes due jobs, runs their handlers and records the outcomes."""
