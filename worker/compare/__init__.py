"""The second half of a comparison: asks every result of its jobs the same questions."""
