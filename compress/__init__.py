"""One training run becomes a family of peers."""
