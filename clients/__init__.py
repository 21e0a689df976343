"""What runs on a client: local training, conversion before upload, private state."""
