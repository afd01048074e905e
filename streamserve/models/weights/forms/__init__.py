"""The forms in which a linear keeps its weight, a file each; `schemes` chooses one."""
