"""What is legal, one file per part of a run; `snnexp.config` puts them together and has all names."""
