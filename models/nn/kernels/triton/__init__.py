"""Forms of the ops for a GPU; `forms.py` joins them, and the rest loads Triton."""
