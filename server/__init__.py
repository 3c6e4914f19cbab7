"""What runs on one machine: the ServerApp and its round."""
