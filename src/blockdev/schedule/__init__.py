"""When snapshots are taken and how long they are kept: rules, the instants they mean, retention, and the runner of it all."""
