"""VCA: text-to-image models that learn from people, in dialogues of several rounds."""

__version__ = "0.1.0"
