"""One use case a file; no HTTP in here."""
