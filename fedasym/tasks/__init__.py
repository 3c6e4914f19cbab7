"""What is learned: columns, labels, loss and metrics, one file per family."""
