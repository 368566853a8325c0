"""Enqueues the jobs of schedules, one for each tick."""
