"""What replication costs and withstands, measured from outside on served homes and real SSH; see bench/README.md."""
