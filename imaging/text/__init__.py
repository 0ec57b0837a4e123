"""Words beside the picture: read, told apart and marked, each mark with its place in the text."""
