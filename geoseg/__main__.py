"""`python -m geoseg` is the command `geoseg`."""

from geoseg.cli import program

program()
