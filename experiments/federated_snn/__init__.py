"""Federations of spiking networks on events, sound and series."""
