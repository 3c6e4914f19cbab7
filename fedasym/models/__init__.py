"""The model that trains: built from the settings, placed on a device, told apart by what it computes."""
