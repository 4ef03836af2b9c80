"""pulsecart measured; see run.py."""
