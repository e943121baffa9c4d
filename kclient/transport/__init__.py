"""How messages travel to a kernel and back. Messages cross this seam, never frames."""
