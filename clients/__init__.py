"""What runs on many machines: the ClientApp and a client's work."""
