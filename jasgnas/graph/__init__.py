"""What a network is made of: parts of leaves, operators, segments, and what people call them."""
