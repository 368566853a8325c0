"""The rules of HTTP, free of input and output: from request values to response values."""
