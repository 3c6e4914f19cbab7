"""What a run leaves: checkpoint, record, adapter folder; and what it would send."""
