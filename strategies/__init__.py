"""What runs on the server: the spiking wrapper, validation, evaluation, the run directory."""
