"""What is computed: programs over integer variables, and what is said of their arrays. Knows no network."""
