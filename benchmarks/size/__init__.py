"""The policy at full size: what is measured, and the search for the longest response."""
