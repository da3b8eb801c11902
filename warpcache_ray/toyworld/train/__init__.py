"""Training of the toy world's models: data, loop, and the stages of each architecture."""
