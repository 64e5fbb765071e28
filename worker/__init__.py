"""Training and inference: the files here take jobs, `train` runs them, `engine` serves."""
