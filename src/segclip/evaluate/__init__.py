"""How well label maps match the truth."""
