"""What server and clients say to each other: records, the contract, and the checks of both sides."""
