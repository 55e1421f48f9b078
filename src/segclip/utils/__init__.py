"""What belongs to no part alone."""
