"""Lanes: fits of Ray Train that take experts from the board and fine-tune them."""
