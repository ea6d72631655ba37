"""Commands that look at files, data, the machine and its speed: inspect, check, doctor, bench."""
