"""What gradients of ordinary, converted and natively spiking networks leak, as studies of ``snnfl compare``."""
