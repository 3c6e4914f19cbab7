"""Many runs: cells, comparison, tuning, and the tables of their result lines."""
