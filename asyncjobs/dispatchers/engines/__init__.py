"""What the dispatchers of other libraries share."""
