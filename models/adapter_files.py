"""The files of an adapter: what its folder, a zip of it and an import are made of."""

PEFT_CONFIG = "adapter_config.json"
"""Hugging Face PEFT's configuration, where PEFT has the method."""
PROVENANCE = "graftwork.json"
"""The method in our own form, and where the adapter comes from."""
TENSORS = "adapter_model.safetensors"
"""The tensors that are served."""
TRAINING_TENSORS = "training.safetensors"
"""Those that training goes on from, where they are others."""

NAMES = (PEFT_CONFIG, PROVENANCE, TENSORS, TRAINING_TENSORS)
