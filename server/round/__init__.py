"""One round: who is there, who is asked, which replies count, and what they come to."""
