"""Label files, and labels as a loss takes them."""
