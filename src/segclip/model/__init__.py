"""The model, a file for each box of the paper's figure."""
