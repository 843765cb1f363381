"""A dense network becomes what a server runs."""
