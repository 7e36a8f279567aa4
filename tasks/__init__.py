"""One file per answer: how it is written, checked, scored and drawn."""
