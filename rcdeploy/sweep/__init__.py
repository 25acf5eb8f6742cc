"""Sweeps: one recipe trained in several ways and with several seeds, scored alike, and put into one table."""
