"""iSCSI targets in the lab guest: real initiators against what the product serves through LIO."""
