"""The engine socket: its frames, its server in a real engine, its client."""
