"""One job a file: compress, compare, distill, inspect, run, batch."""
