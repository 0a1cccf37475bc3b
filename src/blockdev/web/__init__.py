"""The web console: pages for people, made of what the REST API answers to whoever is signed in (docs/console.md)."""
