"""A shop's own package."""
