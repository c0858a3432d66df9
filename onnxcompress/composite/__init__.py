"""Several models that are one program: its parts, how it runs, and the figure of merit of the whole."""
