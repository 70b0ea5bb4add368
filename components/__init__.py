"""One Kubeflow step per file: a thin door onto one stage of the library.

The functions below the decorators travel as text into the step's container, so every import stands inside them.
"""
