"""Every experiment as a short Python config that derives from a base."""
