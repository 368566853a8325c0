"""Follows batches: counts their jobs, cancels them, and ends the batch with the last job."""
