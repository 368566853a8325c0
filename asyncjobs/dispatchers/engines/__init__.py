"""Code shared by the dispatchers for other libraries' queues."""
