"""Small models made here, for runs on machines that reach no hub."""
