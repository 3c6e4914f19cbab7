"""What the server makes of replies: the exact mean, its optimizer, and how far the result is from the mean update."""
