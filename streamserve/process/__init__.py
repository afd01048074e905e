"""How processes of this program start, end and keep bytecode."""
