"""The fault campaign on real Ray clusters, and the test that plays a minute of it."""
