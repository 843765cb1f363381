"""Experiments as YAML; any key can be overridden by the flag of the same name."""
