"""What the dispatchers for other libraries' queues share."""
