"""Words that both sides share; nothing is imported here, so that no side pays for the other."""

IGNORED = -100
"""Marks a token that is no label."""

PEFT = "peft"
PISSA = "pissa"
P_TUNING = "p_tuning"
FULL = "full"
ADAPTERS = "adapters"
"""In what form a peer has a method."""

START_FILE = "start.safetensors"
CONFIG_FILE = "config.json"
