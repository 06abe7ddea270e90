"""The audit: the same certificates for functions that others wrote, in libraries that people train with."""
