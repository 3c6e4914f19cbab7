"""Where a federation runs: in this process, or in Flower's engine on a SuperLink of its own."""
