"""How fast and in how much memory jobs train, beside the libraries that people would run."""
