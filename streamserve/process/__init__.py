"""Starting and ending this program's processes, and what they keep in the user's cache."""
