"""What every room may use: command lines, errors told in one line, files, figures as text, and the machine."""
