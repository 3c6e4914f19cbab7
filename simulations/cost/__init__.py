"""What a federation sends: by model configuration alone, and as counted at the sockets."""
