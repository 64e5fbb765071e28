"""Networks: one frozen backbone, the terms that adapters add to it, and the text they read."""
