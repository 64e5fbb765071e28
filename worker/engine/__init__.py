"""The inference process: one frozen base, its adapters, and rows of all of them in every step."""
