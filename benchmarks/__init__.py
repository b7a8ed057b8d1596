"""What fedpresence costs: `python -m benchmarks SCENARIO`, see README.md beside this file."""
