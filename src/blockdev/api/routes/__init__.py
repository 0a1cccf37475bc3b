"""The addresses of the REST API, a file for each noun.  Plain functions run in a thread pool, so they may block."""
