"""Federated learning with spiking neural networks: the science, in pure PyTorch."""
