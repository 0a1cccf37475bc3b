"""The engine process's other face: a local socket for the control plane, and who is attached to what."""
