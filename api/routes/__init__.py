"""One file a resource; each function parses, calls a service, and returns."""
