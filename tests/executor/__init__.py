"""How plans reach the rank and results come back."""
